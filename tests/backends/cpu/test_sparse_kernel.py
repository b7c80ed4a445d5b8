"""The CPU kernel of dsopt::sparse_attention, against the reference in float64 and a brute-force evaluation of what it chose."""

from __future__ import annotations

import ctypes
import json
import math
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsopt.errors import ArtifactError, InputError, ToolchainError
from dsopt.native import host_compilers
from dsopt.ops.sparse_attention import sparse_attention
from dsopt.runtime.sparse_call import Calls, KernelConfig, Layout, Shapes
from dsopt.runtime.sparse_cpu import NEEDS, choose_level, cpu_flags, load_library
from dsopt.runtime.sparse_kernel import Chosen, SparseKernel
from dsopt.sparse_schedule import LEAF

pytestmark = [
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the kernel is for x86-64"),
    pytest.mark.skipif(platform.system() != "Linux", reason="the kernel is an ELF file"),
    pytest.mark.skipif(not host_compilers(), reason="no C compiler and no ziglang to link with"),
    pytest.mark.skipif(not NEEDS["x86-64-v3"] <= cpu_flags(), reason="the CPU has no AVX2"),
]

RELATIVE = 2e-6
"""The largest difference from float64 that the operator's design allows, relative to the largest result."""

SIZES = ((16, 8), (20, 12))
"""Sizes of heads that most tests share, as each takes a compilation."""


def config(heads: int = 2, head: int = 16, value_head: int = 8, **rest: Any) -> KernelConfig:
    options: dict[str, Any] = {
        "key_heads": heads, "causal": "none", "scale": None, "budget": (40.0,), "unit": "keys", "tile": 16, "window": 2, "has_bias": False,
    }  # fmt: skip
    return KernelConfig(heads=heads, head=head, value_head=value_head, **{**options, **rest})


@cache
def library(head: int, value_head: int, has_bias: bool) -> dict[str, bytes]:
    from dsopt.backends.cpu.sparse import build

    made = config(head=head, value_head=value_head, has_bias=has_bias)
    return build(made, [choose_level(NEEDS)])


def kernel(options: KernelConfig, threads: int = 1) -> SparseKernel:
    return SparseKernel(options, library(options.head, options.value_head, options.has_bias), threads)


def arrays(options: KernelConfig, batch: int, queries: int, keys: int, seed: int = 0, whole: bool = False) -> list[Any]:
    """Return query, key, value. whole: small integers, so that float32 rounds no score."""
    random = np.random.default_rng(seed)
    shapes = (
        (batch, options.heads, queries, options.head),
        (batch, options.key_heads, keys, options.head),
        (batch, options.key_heads, keys, options.value_head),
    )
    made = (random.integers(-2, 3, shape) if whole else random.standard_normal(shape) for shape in shapes)
    return [each.astype(np.float32) for each in made]


def reference(options: KernelConfig, given: list[Any], bias: Any = None) -> np.ndarray[Any, Any]:
    tensors = [torch.from_numpy(each).double() for each in given]
    added = None if bias is None else torch.from_numpy(np.ascontiguousarray(bias))[:, :, None]
    if added is not None and added.dtype != torch.bool:
        added = added.double()
    found = sparse_attention(
        *tensors, added, options.causal, options.scale, options.budget, options.unit, options.tile, options.window
    )  # fmt: skip
    return found.numpy()


def close(found: Any, wanted: Any) -> None:
    assert found.shape == wanted.shape
    assert np.isfinite(found).all()
    limit = RELATIVE * max(1.0, float(np.abs(wanted).max(initial=0.0)))
    assert np.abs(found - wanted).max(initial=0.0) <= limit


def of_chosen(options: KernelConfig, given: list[Any], bias: Any, chosen: dict[Any, Chosen]) -> np.ndarray[Any, Any]:
    """Evaluate in float64, row by row, what the kernel says that it attended to."""
    query, key, value = (each.astype(np.float64) for each in given)
    batch, heads, queries, keys = *query.shape[:3], key.shape[2]
    out = np.zeros((batch, heads, queries, value.shape[3]))
    offset = keys - queries if options.causal == "end" else 0
    for (b, h, t), each in chosen.items():
        k, v = (x[b, h // (heads // options.key_heads)] for x in (key, value))
        added = np.zeros(keys) if bias is None else np.broadcast_to(bias, (batch, heads, keys))[b, h].astype(np.float64)
        if bias is not None and bias.dtype == bool:
            added = np.where(added > 0, 0.0, -np.inf)
        added = added - (added.max() if added.max() > -np.inf else 0.0)
        weight = np.exp(added)
        rows_k, rows_v, logs = [k[each.picks]], [v[each.picks]], [added[each.picks]]
        covered = np.zeros(keys, int)
        for level, index in each.nodes:
            members = np.arange(index * (LEAF << level), (index + 1) * (LEAF << level))
            covered[members] += 1
            rest = np.setdiff1d(members, each.picks)
            total = weight[rest].sum()
            if total > 2.0**-14 * weight[members].sum():
                rows_k.append((weight[rest] @ k[rest] / total)[None])
                rows_v.append((weight[rest] @ v[rest] / total)[None])
                logs.append(np.log([total]))
        rows = np.arange(t * options.tile, min((t + 1) * options.tile, queries))
        sees = np.clip(rows + offset + 1, 0, keys) if options.causal != "none" else np.full(rows.shape, keys)
        prefix = sees.min() // LEAF * LEAF
        assert (covered[:prefix] == 1).all() and not covered[prefix:].any()
        assert each.picks == sorted(set(each.picks)) and all(pick < prefix for pick in each.picks)
        scale = 1 / math.sqrt(options.head) if options.scale is None else options.scale
        for row, limit in zip(rows, sees, strict=True):
            all_k = np.concatenate([*rows_k, k[prefix:limit]])
            logits = all_k @ (query[b, h, row] * scale) + np.concatenate([*logs, added[prefix:limit]])
            if len(logits) and logits.max() > -np.inf:
                parts = np.exp(logits - logits.max())
                out[b, h, row] = parts @ np.concatenate([*rows_v, v[prefix:limit]]) / parts.sum()
    return out


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    sizes=st.sampled_from(SIZES), heads=st.sampled_from([(1, 1), (2, 1), (4, 2), (3, 3)]), batch=st.integers(1, 2),
    queries=st.sampled_from([1, 2, 17, 63, 65, 130]), keys=st.sampled_from([1, 7, 15, 16, 17, 63, 65, 200, 333, 700]),
    causal=st.sampled_from(["none", "start", "end"]), budget=st.sampled_from([-1.0, 0.0, 5.0, 24.0, 60.0]),
    tile=st.sampled_from([1, 4, 16, 32, 64]),
    window=st.integers(0, 3), seed=st.integers(0, 99),
)  # fmt: skip
def test_exact_scores_give_what_the_reference_gives(
    sizes: tuple[int, int], heads: tuple[int, int], batch: int, queries: int, keys: int, causal: str, budget: float, tile: int,
    window: int, seed: int,
) -> None:  # fmt: skip
    # Scores of small integers are exact and often equal: every choice and every tie must be the reference's.
    options = config(
        heads[0], *sizes, key_heads=heads[1], causal=causal, budget=(budget,), tile=tile, window=window, scale=0.125
    )
    given_ = arrays(options, batch, queries, keys, seed, whole=True)
    if (tile in (1, 4, 16, 32, 64) and queries % tile == 0) or (queries < tile and queries in (1, 2)):
        close(kernel(options).run(*given_), reference(options, given_))
    else:  # the mean of a tile of another size is rounded
        chosen: dict[Any, Chosen] = {}
        found = kernel(options).run(*given_, chosen=chosen)
        if chosen:
            close(found, of_chosen(options, given_, None, chosen))
        else:
            close(found, reference(options, given_))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    queries=st.integers(1, 150), keys=st.integers(16, 900), causal=st.sampled_from(["none", "start", "end"]),
    budget=st.sampled_from([0.0, 9.0, 15.0]), tile=st.integers(1, 70), window=st.integers(0, 9),
    mask=st.sampled_from(["none", "float", "bool"]), seed=st.integers(0, 99),
)  # fmt: skip
def test_random_inputs_differ_from_float64_only_by_rounding(
    queries: int, keys: int, causal: str, budget: float, tile: int, window: int, mask: str, seed: int
) -> None:
    options = config(2, causal=causal, budget=(budget,), tile=tile, window=window, has_bias=mask != "none")
    given_ = arrays(options, 1, queries, keys, seed)
    random = np.random.default_rng(seed)
    bias = {
        "none": None,
        "float": random.standard_normal((1, 2, keys)).astype(np.float32),
        "bool": random.random((1, 1, keys)) > 0.4,
    }[mask]
    chosen: dict[Any, Chosen] = {}
    found = kernel(options).run(*given_, bias, chosen=chosen)
    if chosen:
        close(found, of_chosen(options, given_, bias, chosen))
    else:
        close(found, reference(options, given_, bias))


@pytest.mark.parametrize(("keys", "budget"), [(1023, 30.0), (4099, 50.0), (9000, 20.0)])
def test_several_levels_of_search(keys: int, budget: float) -> None:
    options = config(1, budget=(budget,), scale=0.125, tile=32)
    given_ = arrays(options, 1, 64, keys, whole=True)
    close(kernel(options).run(*given_), reference(options, given_))


@pytest.mark.parametrize("causal", ["none", "end"])
def test_budgets_of_heads_differ(causal: str) -> None:
    options = config(4, causal=causal, key_heads=2, budget=(-1.0, 0.02, 0.3, 1.0), unit="share", scale=0.125)
    given_ = arrays(options, 2, 80, 320, whole=True)
    close(kernel(options).run(*given_), reference(options, given_))


@pytest.mark.slow
@pytest.mark.parametrize("head", [(64, 64), (80, 48), (256, 256)])
def test_other_sizes_of_heads(head: tuple[int, int]) -> None:
    options = config(2, *head, scale=0.25, causal="start")
    given_ = arrays(options, 1, 32, 200, whole=True)
    close(kernel(options).run(*given_), reference(options, given_))


def test_rows_that_see_nothing_are_zero() -> None:
    options = config(2, has_bias=True, causal="end")
    given_ = arrays(options, 2, 40, 33)
    bias = np.zeros((2, 1, 33), np.float32)
    bias[1] = -np.inf
    found = kernel(options).run(*given_, bias)
    assert not found[1].any() and not found[0, :, :7].any()
    close(found, reference(options, given_, bias))
    dense = config(2, has_bias=True, causal="end", budget=(-1.0,))
    close(kernel(dense).run(*given_, bias), reference(dense, given_, bias))


def test_views_of_projections_and_unaligned_memory_are_read_as_they_lie() -> None:
    options = config(2, scale=0.125, causal="end")
    given_ = arrays(options, 2, 48, 300, whole=True)
    views = []
    for each in given_:
        batch, heads, rows, length = each.shape
        raw = np.zeros(batch * rows * heads * length * 4 + 1, np.uint8)[1:].view(np.float32)
        view = raw.reshape(batch, rows, heads, length).transpose(0, 2, 1, 3)
        view[...] = each
        views.append(view)
    out = np.full((2, 48, 2, 8), np.nan, np.float32).transpose(0, 2, 1, 3)
    made = kernel(options)
    assert made.run(*views, out=out) is out
    assert np.array_equal(out, made.run(*given_))
    close(out, reference(options, given_))


@pytest.mark.parametrize(
    ("batch", "queries", "threads", "phases"),
    [
        pytest.param(2, 200, 1, 1, id="too little for a second thread"),
        pytest.param(2, 300, 3, 2, id="heads in parts, after all pyramids"),
        pytest.param(6, 100, 3, 1, id="heads as a whole"),
    ],
)
def test_threads_and_calls_at_the_same_time_change_no_bit(batch: int, queries: int, threads: int, phases: int) -> None:
    options = config(4, causal="start", key_heads=2, budget=(30.0, -1.0, 30.0, 10.0))
    given_ = arrays(options, batch, queries, 400)
    query, key, value = (Layout.of(each) for each in given_)
    calls = Calls(options, Shapes(query, key, value, Layout.of(None), query, is_traced=False), threads=3)
    assert (calls.threads, len(calls.phases)) == (threads, phases)
    alone = kernel(options).run(*given_)
    shared = kernel(options, threads=3)
    with ThreadPoolExecutor(3) as pool:
        for each in pool.map(lambda _: shared.run(*given_), range(6)):
            assert np.array_equal(each, alone)


def test_large_logits_do_not_overflow() -> None:
    options = config(1, scale=1e3, budget=(8.0,))
    given_ = arrays(options, 1, 32, 200, whole=True)
    found = kernel(options).run(*given_)
    close(found, reference(options, given_))


@pytest.mark.parametrize("shape", [(0, 8, 8), (1, 0, 8), (1, 8, 0)])
def test_nothing_to_do(shape: tuple[int, int, int]) -> None:
    options = config(2)
    found = kernel(options).run(*arrays(options, *shape))
    assert found.shape == (shape[0], 2, shape[1], 8) and not found.any()


def test_what_does_not_fit_is_refused() -> None:
    made, given_ = kernel(config(2)), arrays(config(2), 1, 8, 32)
    with pytest.raises(InputError, match="DS0393"):
        made.run(given_[0], given_[1], given_[2][:, :1])
    with pytest.raises(InputError, match="DS0393"):
        made.run(given_[0].astype(np.float64), *given_[1:])
    with pytest.raises(InputError, match="if and only if"):
        made.run(*given_, np.zeros((1, 1, 32), np.float32))
    biased = kernel(config(2, has_bias=True))
    with pytest.raises(InputError, match="bias"):
        biased.run(*arrays(biased.config, 1, 8, 32), np.zeros((1, 1, 31), np.float32))


def test_the_best_level_that_the_cpu_has_is_chosen() -> None:
    both = dict.fromkeys(NEEDS, b"")
    assert choose_level(both, NEEDS["x86-64-v4"]) == "x86-64-v4"
    assert choose_level(both, NEEDS["x86-64-v3"] | {"avx512f"}) == "x86-64-v3"
    with pytest.raises(ToolchainError, match=r"lacks .*avx512f"):
        choose_level({"x86-64-v4": b""}, NEEDS["x86-64-v3"])
    with pytest.raises(ToolchainError, match="no level"):
        choose_level({}, NEEDS["x86-64-v3"])
    with pytest.raises(ArtifactError, match="DS0392"):
        load_library(b"no library")


def test_the_widest_vectors_compute_the_same_in_pieces() -> None:
    # No emulator here knows AVX-512; but LLVM splits its vectors for a CPU with AVX2: all but the instructions is tested so.
    from dsopt.backends.cpu.sparse import link
    from dsopt.backends.cpu.sparse.form import LEVELS, Form

    form = Form.of(20, 12, True, replace(LEVELS[1], name="x86-64-v3"))
    code = {"x86-64-v3": link.linked(link.objects(form))}
    for causal, tile, budget in (("none", 16, 30.0), ("end", 32, 9.0), ("start", 64, -1.0), ("none", 1, 20.0)):
        options = config(2, 20, 12, causal=causal, tile=tile, budget=(budget,), scale=0.125, has_bias=True)
        given_ = arrays(options, 1, 80 if tile == 16 else 64, 333, whole=True)
        bias = np.random.default_rng(1).random((1, 2, 333)) > 0.0
        close(SparseKernel(options, code).run(*given_, bias), reference(options, given_, bias))


def test_every_level_builds_the_same_bytes_and_needs_nothing() -> None:
    from dsopt.backends.cpu.sparse import build, link
    from dsopt.backends.cpu.sparse.form import LEVELS, Form

    first = link.objects(Form.of(16, 8, False, LEVELS[1]))
    libraries = build(config())
    assert list(libraries) == ["x86-64-v3", "x86-64-v4"]
    assert libraries["x86-64-v4"] == link.linked(first)
    for code in libraries.values():
        assert _undefined(code) == []


def _undefined(code: bytes) -> list[str]:
    elf = pytest.importorskip("elftools.elf.elffile")
    import io

    symbols = elf.ELFFile(io.BytesIO(code)).get_section_by_name(".dynsym").iter_symbols()
    return [each.name for each in symbols if each["st_shndx"] == "SHN_UNDEF" and each.name]


def test_a_configuration_survives_json() -> None:
    made = config(2, budget=(3.0, -1.0))
    assert KernelConfig.from_dict(json.loads(json.dumps(made.as_dict()))) == made


def test_the_runtime_needs_neither_torch_nor_tvm(tmp_path: Path) -> None:
    options = config(2)
    path = tmp_path / "kernel.so"
    path.write_bytes(next(iter(library(16, 8, False).values())))
    program = f"""
import sys, numpy as np
from pathlib import Path
from dsopt.runtime.sparse_call import KernelConfig
from dsopt.runtime.sparse_kernel import SparseKernel
made = KernelConfig.from_dict({options.as_dict()!r})
kernel = SparseKernel(made, {{{next(iter(library(16, 8, False)))!r}: Path({str(path)!r})}})
q, k, v = (np.ones((1, 2, 64, n), np.float32) for n in (16, 16, 8))
assert np.allclose(kernel.run(q, k, v), 1)
assert not {{"torch", "tvm", "tvm_ffi"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert ctypes.sizeof(ctypes.c_void_p) == 8
