"""Keys and values added up in a binary pyramid, so that a node can stand for the keys below it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsopt.ops.sparse_attention.work import Work
from dsopt.sparse_schedule import LEAF

_DENSER = 16
"""Multiplying by so many more rows at once takes no longer than gathering those that count."""


@dataclass(frozen=True)
class Level:
    """Nodes of one size, G heads of N nodes. A key weighs exp(its bias), 0 if it is masked.

    weight: (G, N), the sum of the weights.  count: (G, N), how many keys are not masked.  key, value: (G, N, D) and (G, N, E),
    weighted sums.
    """

    weight: Tensor
    count: Tensor
    key: Tensor
    value: Tensor

    @property
    def nodes(self) -> int:
        """Return N."""
        return self.weight.shape[1]

    def pairs(self) -> Level:
        """Return the level above: every two nodes are one, and a last one without a partner is left out."""
        whole = self.nodes // 2 * 2
        return Level(*(_grouped(each[:, :whole], 2) for each in (self.weight, self.count, self.key, self.value)))


def _grouped(values: Tensor, size: int) -> Tensor:
    """Add up every `size` along dim 1."""
    return values.reshape(values.shape[0], values.shape[1] // size, size, *values.shape[2:]).sum(2)


def build(key: Tensor, value: Tensor, weight: Tensor, work: Work) -> list[Level]:
    """Return the levels from leaves to the last with a node. key: (G, S, D); value: (G, S, E); weight: (G, S)."""
    whole = key.shape[1] // LEAF * LEAF
    each = weight[:, :whole]
    found = [
        Level(
            *(
                _grouped(part, LEAF)
                for part in (
                    each,
                    (each > 0).to(each.dtype),
                    key[:, :whole] * each[..., None],
                    value[:, :whole] * each[..., None],
                )
            )
        )
    ]
    both = key.shape[2] + value.shape[2]
    work.add("pooling", key.shape[0] * whole * both)
    while found[-1].nodes >= 2:
        work.add("pooling", key.shape[0] * (found[-1].nodes // 2 * 2) * both)
        found.append(found[-1].pairs())
    return found


def take(values: Tensor, index: Tensor) -> Tensor:
    """Return values[g, index[g, t, c]] as (G, t, c, ...). values: (G, N, ...); index: (G, t, c) int64."""
    heads, count = values.shape[:2]
    flat = index + torch.arange(0, heads * count, max(count, 1), device=index.device)[:, None, None]
    return values.flatten(0, 1).index_select(0, flat.flatten()).view(*index.shape, *values.shape[2:])


def products(values: Tensor, index: Tensor, probe: Tensor) -> Tensor:
    """Return the scalar product of values[g, index[g, t, c]] and probe[g, t], (G, t, c). values: (G, N, D); probe: (G, t, D)."""
    if values.shape[1] <= _DENSER * index.shape[2]:
        return (probe @ values.transpose(1, 2)).gather(2, index)
    return (take(values, index) @ probe[..., None])[..., 0]
