"""dsopt::sparse_attention: schema, shape rule and gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dsopt.ops.library import register_recomputed
from dsopt.ops.sparse_attention.heads import check
from dsopt.ops.sparse_attention.reference import sparse_attention
from dsopt.sparse_schedule import picked, schedule, work

SCHEMA = (
    "sparse_attention(Tensor query, Tensor key, Tensor value, Tensor? bias, str causal, float? scale, float[] budget, str unit, "
    "int tile, int window) -> Tensor"
)


def _reference(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, causal: str, scale: float | None, budget: Sequence[float], unit: str,
    tile: int, window: int,
) -> Tensor:  # fmt: skip
    return sparse_attention(query, key, value, bias, causal, scale, budget, unit, tile, window)


def _shape_rule(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, causal: str, scale: float | None, budget: Sequence[float], unit: str,
    tile: int, window: int,
) -> Tensor:  # fmt: skip
    check(query, key, value, bias, causal, budget, unit, tile, window)
    return query.new_empty((*query.shape[:3], value.shape[3]))


def multiply_adds(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], budget: Sequence[float], unit: str, tile: int
) -> int:
    """Return what the operator takes of operands with these shapes, (B, H, T, D), (B, K, S, D) and (B, K, S, E), masks not looked at."""
    sizes = query[2], key[2], query[3], value[3]
    heads = [work(schedule(key[2], picked(each, unit, *sizes, tile)), *sizes, tile) for each in budget]
    return round(query[0] * sum(heads) * (query[1] if len(heads) == 1 else 1))


register_recomputed(SCHEMA, _reference, _shape_rule)

OPERATOR = torch.ops.dsopt.sparse_attention.default
