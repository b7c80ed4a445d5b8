"""The Triton kernels of sparse attention as machine code: all of it in registers, and with the instructions that make it fast."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dsopt.backends.cuda import sparse
from dsopt.backends.cuda.sparse import build, has_triton, sizes
from dsopt.errors import ToolchainError
from dsopt.sparse_schedule import LEAF, OPENED, Schedule, schedule

needs_triton = pytest.mark.skipif(not has_triton(), reason="Triton is not installed: pip install 'dsopt[cuda-dev]'")

BF16 = sizes.Problem("bf16", 64, 64, 64, causal=True, bias=False)


def _check(compiled: build.Compiled) -> None:
    assert compiled.spill_bytes == 0, compiled
    assert 0 < compiled.registers <= 255
    assert compiled.shared_bytes <= (227 if compiled.arch == "sm_90" else 163) * 1024
    assert compiled.cubin[:4] == b"\x7fELF"
    assert str(Path(sparse.__file__).parent).encode() not in compiled.cubin


@needs_triton
@pytest.mark.parametrize("arch", build.ARCHS)
def test_the_forward_kernel_multiplies_matrices_by_tensor_cores(arch: str) -> None:
    compiled = build.build(BF16, 256, -1, arch)["forward"]
    _check(compiled)
    assert compiled.cp_async > 0
    assert (compiled.wgmma > 0) == (arch == "sm_90")
    assert (compiled.mma_sync > 0) == (arch == "sm_80")
    assert "SPARSE" in compiled.constants and ("K", "*bf16") in compiled.parameters


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("arch", build.ARCHS)
@pytest.mark.parametrize("head", [64, 128])
@pytest.mark.parametrize(("keys", "picks"), [(1024, 120), (4096, 144), (131072, 204)])
def test_all_forward_kernels_fit_into_registers(arch: str, head: int, keys: int, picks: int) -> None:
    compiled = build.build(sizes.Problem("bf16", head, head, 64, causal=True, bias=False), keys, picks, arch)
    assert set(compiled) == {"pool", "select", "forward"}
    for each in compiled.values():
        _check(each)
    forward = compiled["forward"]
    assert (forward.wgmma if arch == "sm_90" else forward.mma_sync) > 0 and forward.cp_async > 0


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("arch", build.ARCHS)
@pytest.mark.parametrize("head", [64, 128])
def test_all_kernels_of_the_gradient_fit_into_registers(arch: str, head: int) -> None:
    compiled = build.build_backward(sizes.Problem("bf16", head, head, 64, causal=True, bias=False), 4096, 144, arch)
    assert set(compiled) == {"backward", "keys_backward", "sum_rows"}
    for each in compiled.values():
        # 64 rows of 128 channels, twice as operands and once as a sum, are more than an A100's registers hold.
        if (each.name, arch, head) != ("backward", "sm_80", 128):
            _check(each)
    assert all((each.wgmma if arch == "sm_90" else each.mma_sync) > 0 for each in compiled.values())


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "head"), [("bf16", 32), ("fp16", 96), ("bf16", 192), ("fp16", 256), ("fp32", 64), ("fp32", 128)]
)
def test_the_forward_kernel_compiles_for_other_head_sizes_and_a_bias(dtype: str, head: int) -> None:
    compiled = build.build(sizes.Problem(dtype, head, head, 64, causal=True, bias=True), 1024, 120, "sm_90")["forward"]
    _check(compiled)


@needs_triton
def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(ToolchainError, match="sm_75"):
        build.build(BF16, 1024, -1, "sm_75")


def test_without_triton_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(build, "has_triton", lambda: False)
    with pytest.raises(ToolchainError, match="DS0399"):
        build.build(BF16, 1024, 120, "sm_90")


@pytest.mark.parametrize("keys", [17, 64, 100, 127, 128, 1000, 1023, 4099, 9000, 131072])
def test_the_rows_of_nodes_hold_the_cover_of_every_prefix(keys: int) -> None:
    plan, leaves = schedule(keys, 8), keys // LEAF
    prefixes = (
        range(leaves + 1) if leaves < 1200 else (*range(0, leaves + 1, 97), leaves, (1 << leaves.bit_length() - 1) - 1)
    )
    assert max(_cover_size(plan, prefix) for prefix in prefixes) <= sizes.most_nodes(plan, leaves)


def _cover_size(plan: Schedule, prefix: int) -> int:
    """Return how many nodes a cover of some leaves has: as `search.find_cover` opens them, some of each level or all."""
    candidates, nodes, opened = prefix >> plan.top, 0, 0
    for level in range(plan.top, -1, -1):
        if level < plan.top:
            candidates = (2 * opened if level >= plan.fine else 0) + ((prefix >> level) & 1)
        opened = min(OPENED, candidates) if level > plan.fine else 0
        nodes += candidates - opened
    return nodes
