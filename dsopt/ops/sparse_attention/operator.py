"""dsopt::sparse_attention: schema, shape rule and gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dsopt.ops.library import register_recomputed
from dsopt.ops.sparse_attention.heads import check
from dsopt.ops.sparse_attention.reference import sparse_attention

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


register_recomputed(SCHEMA, _reference, _shape_rule)

OPERATOR = torch.ops.dsopt.sparse_attention.default
