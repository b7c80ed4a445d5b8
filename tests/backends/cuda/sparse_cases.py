"""Cases of sparse attention by its Triton kernels, under Triton's interpreter: on the CPU, without a GPU.

`python -m tests.backends.cuda.sparse_cases [NAME ...]` runs them in one process of its own, because Triton reads TRITON_INTERPRET when it
is imported, and prints what they came to as JSON. The interpreter computes no products of bfloat16.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dsopt.ops.sparse_attention import sparse_attention as reference


@dataclass(frozen=True)
class Case:
    """B, H, K, T, S, D, E, and what the operator is told. change: what becomes of seeded normal inputs."""

    shape: tuple[int, int, int, int, int, int, int]
    budget: Sequence[float] = (20,)
    causal: str = "none"
    tile: int = 16
    window: int = 2
    unit: str = "keys"
    scale: float | None = None
    dtype: torch.dtype = torch.float32
    bias: Callable[[Tensor], Tensor] | None = None
    bias_heads: int = 1
    change: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]] = field(default=lambda q, k, v: (q, k, v))
    has_gradient: bool = True

    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
        """Return query, key, value, bias and the gradient that comes in."""
        batch, heads, groups, queries, keys, head, value_head = self.shape
        draw = torch.Generator().manual_seed(sum(self.shape))
        shapes = ((batch, heads, queries, head), (batch, groups, keys, head), (batch, groups, keys, value_head))
        query, key, value = self.change(*(torch.randn(shape, generator=draw) for shape in shapes))
        bias = None if self.bias is None else self.bias(torch.randn((batch, self.bias_heads, 1, keys), generator=draw))
        grad = torch.randn((batch, heads, queries, value_head), generator=draw)
        query, key, value, grad = (each.to(self.dtype) for each in (query, key, value, grad))
        return query, key, value, bias, grad


def some_masked(bias: Tensor) -> Tensor:
    """Mask the first keys and every seventh one."""
    number = torch.arange(bias.shape[3])
    return bias.masked_fill((number < 20) | (number % 7 == 0), -torch.inf)


def one_batch_masked(bias: Tensor) -> Tensor:
    """Let the first batch attend to nothing and the second to most."""
    return (bias > -1) & (torch.arange(bias.shape[0]) > 0)[:, None, None, None]


def equal_keys(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Make every four keys the same, so that scores tie."""
    return query, key[:, :, ::4].repeat_interleave(4, 2)[:, :, : key.shape[2]], value


def heads_last(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lay heads behind rows, as projections of whole models leave them."""
    query, key, value = (each.transpose(1, 2).contiguous().transpose(1, 2) for each in (query, key, value))
    return query, key, value


CASES = {
    "tiles, heads of two sizes, groups": Case((1, 2, 1, 20, 133, 16, 32)),
    "head sizes no powers of two": Case((1, 1, 1, 10, 96, 24, 40), window=0),
    "causal, to the end, own bias a head": Case((1, 2, 1, 20, 133, 16, 24), causal="end", bias=some_masked, bias_heads=2),
    "causal, from the start, more queries than keys": Case((1, 1, 1, 70, 50, 16, 16), causal="start", tile=32),
    "a batch that may attend to nothing": Case((2, 1, 1, 16, 70, 16, 16), bias=one_batch_masked),
    "schedules of heads": Case((1, 4, 2, 16, 150, 16, 16), budget=(20, -1, 30, 20), causal="end", change=heads_last),
    "all keys": Case((1, 1, 1, 70, 90, 16, 16), budget=(-1,), causal="end"),
    "no picks": Case((1, 1, 1, 16, 150, 16, 16), budget=(0,)),
    "fewer rows than a block": Case((1, 1, 1, 5, 64, 16, 16), tile=3, scale=0.5),
    "keys that tie": Case((1, 1, 1, 16, 200, 16, 16), change=equal_keys, has_gradient=False),
    "scores of ten thousand": Case((1, 1, 1, 16, 200, 16, 16), change=lambda q, k, v: (300 * q, 40 * k, v), has_gradient=False),
    "levels to search": Case((1, 1, 1, 2, 4209, 16, 16), budget=(12,), unit="log2", has_gradient=False),
    "half precision": Case((1, 1, 1, 16, 333, 16, 16), dtype=torch.float16),
    "half precision, all keys": Case((1, 1, 1, 16, 333, 16, 16), dtype=torch.float16, budget=(-1,)),
}  # fmt: skip


def results(case: Case, function: Callable[..., Tensor], dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    """Return the output and, where the case has them, the gradients of query, key and value."""
    query, key, value, bias, grad = case.inputs()
    leaves = [each.to(device, dtype).requires_grad_(case.has_gradient) for each in (query, key, value)]
    if bias is not None:
        bias = bias.to(device) if bias.dtype == torch.bool else bias.to(device, dtype)
    out = function(*leaves, bias, case.causal, case.scale, list(case.budget), case.unit, case.tile, case.window)
    found = torch.autograd.grad(out, leaves, grad.to(device, dtype)) if case.has_gradient else ()
    return [out.detach(), *found]


def errors(case: Case, function: Callable[..., Tensor], device: str = "cpu") -> list[float]:
    """Return max|a-b| / max|b| of output and gradients, against the reference in float64."""
    got = results(case, function, case.dtype, device)
    want = results(case, reference, torch.float64)
    return [
        float((a.cpu().double() - b).abs().max() / b.abs().max().clamp(min=1e-9))
        for a, b in zip(got, want, strict=True)
    ]


def eager_errors(case: Case) -> list[float]:
    """Return what dense attention by torch, in the dtype of the case, comes to on the same inputs."""

    def eager(q: Tensor, k: Tensor, v: Tensor, bias: Any, causal: str, scale: float | None, *rest: Any) -> Tensor:
        assert bias is None and causal == "none"
        logits = q @ k.transpose(2, 3) * (1 / math.sqrt(q.shape[3]) if scale is None else scale)
        return logits.softmax(3) @ v

    got, want = results(case, eager, case.dtype), results(case, eager, torch.float64)
    return [float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(got, want, strict=True)]


def through_the_operator() -> list[float]:
    """Return the errors of the registered operator, with the kernels put in its place on this device."""
    from dsopt.backends.cuda import sparse

    sparse.register("cpu")
    case = Case((1, 1, 1, 16, 70, 16, 16))
    once, again = (results(case, torch.ops.dsopt.sparse_attention, torch.float32) for _ in range(2))
    assert all(bool((a == b).all()) for a, b in zip(once, again, strict=True)), "two runs differ"
    return errors(case, torch.ops.dsopt.sparse_attention)


def main(names: Sequence[str]) -> None:
    """Run some cases, all without names."""
    os.environ["TRITON_INTERPRET"] = "1"
    from dsopt.backends.cuda.sparse.function import sparse_attention

    torch.set_num_threads(1)
    found: dict[str, Any] = {name: errors(CASES[name], sparse_attention) for name in names or CASES}
    found["operator"] = through_the_operator()
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
