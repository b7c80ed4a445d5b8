"""Sparse attention on a GPU: the kernels against the reference, in float32 and in 16 bits, and in a CUDA graph. `pytest -m cuda`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dsopt.backends.cuda.sparse import has_triton
from dsopt.backends.cuda.sparse.function import sparse_attention
from dsopt.ops.sparse_attention import sparse_attention as reference
from tests.backends.cuda.sparse_cases import CASES, Case, errors, results

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU, or no driver, or a torch for CPUs alone"),
    pytest.mark.skipif(not has_triton(), reason="Triton is not installed"),
]

LARGE = [
    Case((1, 2, 2, 1023, 1023, 64, 64), budget=(12,), unit="log2", tile=64, causal="end"),
    Case((1, 4, 2, 1025, 4099, 128, 128), budget=(12,), unit="log2", tile=64, causal="end"),
    Case((2, 2, 1, 1000, 1000, 96, 96), budget=(0.2,), unit="share", tile=64),
    Case((1, 1, 1, 128, 20000, 64, 64), budget=(12,), unit="log2", tile=64),
    Case((1, 1, 1, 300, 1100, 256, 256), budget=(100,), tile=128, causal="end"),
    Case((1, 2, 2, 300, 300, 32, 32), budget=(-1,), causal="start"),
]


@pytest.mark.parametrize("case", [*CASES.values(), *LARGE], ids=lambda case: str(case.shape))
def test_kernels_agree_with_the_reference(case: Case) -> None:
    found = errors(replace(case, dtype=torch.float32), sparse_attention, "cuda")
    assert max(found) <= 5e-6, found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", LARGE, ids=lambda case: str(case.shape))
def test_of_16_bits_errors_are_those_of_dense_attention_by_torch(case: Case, dtype: torch.dtype) -> None:
    """Judge by dense attention (all keys picked) in the same dtype: eager torch's error against float64, times 1.5."""
    case = replace(case, dtype=dtype)
    dense = replace(case, budget=(-1,))
    got, again = (results(case, sparse_attention, dtype, "cuda") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
    want = results(replace(case, dtype=dtype), reference, torch.float64, "cuda")
    eager = results(dense, _eager, dtype, "cuda")
    exact = results(dense, reference, torch.float64, "cuda")
    for a, b, c, d in zip(got, want, eager, exact, strict=True):
        assert _far(a, b) <= 1.5 * _far(c, d)


def _far(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def _eager(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: None, causal: str, *rest: object) -> torch.Tensor:
    k, v = (each.repeat_interleave(q.shape[1] // each.shape[1], 1) for each in (k, v))
    logits = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
    if causal != "none":
        offset = k.shape[2] - q.shape[2] if causal == "end" else 0
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(offset)
        logits = logits.masked_fill(~seen, -torch.inf)
    return logits.softmax(3) @ v


def test_a_graph_gives_what_launches_give() -> None:
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn((2, 4, 2048, 64), generator=draw).to("cuda", torch.bfloat16) for _ in range(3))
    settings = (None, "none", None, [12.0], "log2", 64, 2)
    want = sparse_attention(query, key, value, *settings)
    graph = torch.cuda.CUDAGraph()
    held = [each.clone() for each in (query, key, value)]
    with torch.cuda.graph(graph):
        got = sparse_attention(*held, *settings)
    for each, other in zip(held, (query, key, value), strict=True):
        each.copy_(other.roll(1, 0))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(got, want.roll(1, 0))
