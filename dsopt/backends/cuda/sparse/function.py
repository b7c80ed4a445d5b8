"""The operator on a GPU: which heads share a schedule, forward and gradient, and where the reference takes over.

The same results as `dsopt.ops.sparse_attention.reference`, up to rounding; what the kernels do not take is given to it (`why_not`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dsopt.backends.cuda.sparse import sizes
from dsopt.backends.cuda.sparse.gradient import backward
from dsopt.backends.cuda.sparse.launch import DTYPES, Heads, Selection, build_pyramid, forward, select
from dsopt.ops.sparse_attention import sparse_attention as reference
from dsopt.ops.sparse_attention.heads import check
from dsopt.sparse_schedule import DENSE, LEAF, picked, schedule

_DENSE_TILE = 64


def sparse_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, causal: str, scale: float | None, budget: Sequence[float], unit: str,
    tile: int, window: int,
) -> Tensor:  # fmt: skip
    """Return what the reference returns, with its gradients; see there for shapes. Raises ValueError as it does."""
    check(query, key, value, bias, causal, budget, unit, tile, window)
    if why_not(query, key, value, bias, budget, unit, tile) is not None:
        return reference(query, key, value, bias, causal, scale, budget, unit, tile, window)
    settings = (causal, scale, tuple(budget), unit, tile, window)
    found: Tensor = _Attention.apply(query, key, value, bias, settings)  # type: ignore[no-untyped-call]
    return found


def why_not(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, budget: Sequence[float], unit: str, tile: int
) -> str | None:
    """Return why the kernels cannot do this, None if they can."""
    batch, heads, queries, head = query.shape
    keys, value_head = key.shape[2], value.shape[3]
    if query.dtype not in DTYPES:
        return f"the kernels compute in {', '.join(DTYPES.values())}, not in {query.dtype}"
    if 0 in (*query.shape, *key.shape, value_head):
        return "nothing is to be computed"
    if max(head, value_head) > sizes.MOST_CHANNELS:
        return f"a head of more than {sizes.MOST_CHANNELS} channels does not fit into registers"
    if tile > sizes.MOST_ROWS:
        return f"a tile of more than {sizes.MOST_ROWS} rows does not fit into registers"
    if bias is not None and bias.requires_grad:
        return "the bias wants a gradient"
    if batch * heads > 65535 or max(_reach(each) for each in (query, key, value)) >= 2**31:
        return "more heads or numbers than 32 bits and a grid can count"
    beams = (schedule(keys, picked(each, unit, queries, keys, head, value_head, tile)).beam for each in budget)
    if LEAF * min(max(beams), keys // LEAF) > sizes.MOST_CANDIDATES:
        return f"a search that scores more than {sizes.MOST_CANDIDATES} keys at the end does not fit into registers"
    return None


def _reach(x: Tensor) -> int:
    """Return how far apart the rows of a head lie in memory."""
    return x.shape[2] * abs(x.stride(2))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, settings: tuple[Any, ...]
    ) -> Tensor:
        parts = by_schedule(query.detach(), key.detach(), value.detach(), bias, settings)
        batch, heads, queries, _ = query.shape
        result = query.new_empty((batch, heads, queries, value.shape[3]))
        lse = query.new_empty((batch, heads, queries), dtype=torch.float32)
        selections = attend(parts, result, lse)
        ctx.parts, ctx.selections = parts, selections
        ctx.save_for_backward(query, key, value, result, lse)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, result, lse = ctx.saved_tensors
        several = len(ctx.parts) > 1
        dq = query.new_empty(query.shape)
        dk, dv = (each.new_empty(each.shape, dtype=torch.float32 if several else each.dtype) for each in (key, value))
        grad = grads[0].contiguous()
        for number, (some, made) in enumerate(zip(ctx.parts, ctx.selections, strict=True)):
            backward(some, made, result, lse, grad, dq, dk, dv, adds=number > 0)
        return dq, dk.to(key.dtype), dv.to(value.dtype), None, None


def attend(parts: Sequence[Heads], result: Tensor, lse: Tensor) -> list[Selection | None]:
    """Select and attend in heads of all schedules; result and lse as in `launch.forward`. Returns what was selected, None for all keys."""
    pyramid = None
    selections: list[Selection | None] = []
    for some in parts:
        made = None
        if not some.plan.is_dense:
            pyramid = build_pyramid(some) if pyramid is None else pyramid
            made = select(some, pyramid)
        forward(some, made, result, lse)
        selections.append(made)
    return selections


def by_schedule(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, settings: tuple[Any, ...]
) -> list[Heads]:
    """Return the heads by their schedules. settings: causal, scale, budget, unit, tile and window of the operator."""
    causal, scale, budget, unit, tile, window = settings
    _, heads, queries, head = query.shape
    keys, value_head = key.shape[2], value.shape[3]
    budgets = list(budget) if len(budget) > 1 else [budget[0]] * heads
    picks = [picked(each, unit, queries, keys, head, value_head, tile) for each in budgets]
    plans = [schedule(keys, each) for each in picks]
    q, k, v = (each if each.stride(3) == 1 else each.contiguous() for each in (query, key, value))
    every = Heads(
        q, k, v, _additive(bias, keys), tuple(range(heads)), DENSE, causal != "none", keys - queries if causal == "end" else 0,
        1 / math.sqrt(head) if scale is None else scale, tile, window,
    )  # fmt: skip
    parts = []
    for plan in sorted(set(plans), key=lambda each: each.picks):
        members = tuple(number for number, each in enumerate(plans) if each == plan)
        parts.append(dataclasses.replace(every, heads=members, plan=plan, tile=_DENSE_TILE if plan.is_dense else tile))
    return parts


def _additive(bias: Tensor | None, keys: int) -> Tensor | None:
    """Return (B or 1, H or 1, S) float32 to be added to scores, its highest number in each head 0."""
    if bias is None:
        return None
    if bias.dtype == torch.bool:
        added = torch.zeros_like(bias, dtype=torch.float32).masked_fill(~bias, -torch.inf)
    else:
        added = bias.detach().to(torch.float32)
        added = added - added.amax(3, keepdim=True).nan_to_num(neginf=0.0)
    return added[:, :, 0].expand(-1, -1, keys).contiguous()
