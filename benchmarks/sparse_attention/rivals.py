"""Sparse attention as others do it, each with the same number of keys for every query.

All give every key a score for every query, and softmax runs over the keys with the highest. Finding those keys is not counted, which
favours them: `oracle top-k` needs all of dense attention's scores for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 64
"""Queries and keys of a pooled block."""

PAGE = 16
"""Keys of a page with bounds."""

SINKS = 4
"""First keys that a window always has (Xiao et al. 2024)."""

Score = Callable[[Tensor, Tensor], Tensor]
"""query (..., T, D) and key (..., S, D) to the scores (..., T, S) by which keys are chosen."""


def attention(query: Tensor, key: Tensor, value: Tensor, score: Score, count: int) -> Tensor:
    """Return attention (..., T, E) of each query to the `count` keys with the highest scores."""
    kept = score(query, key).topk(count, dim=-1).indices
    logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    seen = torch.full_like(logits, -torch.inf).scatter(-1, kept, logits.gather(-1, kept))
    return seen.softmax(-1) @ value


def oracle(query: Tensor, key: Tensor) -> Tensor:
    """Score by the very logits: no choice of as many keys has more of the softmax's weight."""
    return query @ key.transpose(-1, -2)


def window(query: Tensor, key: Tensor) -> Tensor:
    """Score by nearness; the first keys come before all."""
    t, s = query.shape[-2], key.shape[-2]
    near = -(torch.arange(t)[:, None] - torch.arange(s)).abs().to(query.dtype)
    near[:, :SINKS] = 1.0
    return near.expand(*query.shape[:-2], t, s)


def random(query: Tensor, key: Tensor) -> Tensor:
    """Score by chance, the same at each call."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(*query.shape[:-1], key.shape[-2], generator=generator)


def pooled_blocks(query: Tensor, key: Tensor) -> Tensor:
    """Score blocks of keys for blocks of queries by their means, as block-sparse attention with pooling does."""
    scores = _means(query, BLOCK) @ _means(key, BLOCK).transpose(-1, -2)
    return _spread(_spread(scores, -2, BLOCK, query.shape[-2]), -1, BLOCK, key.shape[-2])


def pages(query: Tensor, key: Tensor) -> Tensor:
    """Score pages of keys by the bound of their logits from least and greatest numbers (Quest, Tang et al. 2024)."""
    parts = key.split(PAGE, -2)
    least, most = (torch.stack([each(part) for part in parts], -2) for each in (_least, _most))
    bound = query.clamp(min=0) @ most.transpose(-1, -2) + query.clamp(max=0) @ least.transpose(-1, -2)
    return _spread(bound, -1, PAGE, key.shape[-2])


def _least(part: Tensor) -> Tensor:
    return part.amin(-2)


def _most(part: Tensor) -> Tensor:
    return part.amax(-2)


def _means(x: Tensor, size: int) -> Tensor:
    return torch.stack([part.mean(-2) for part in x.split(size, -2)], -2)


def _spread(x: Tensor, dim: int, size: int, length: int) -> Tensor:
    return x.repeat_interleave(size, dim).narrow(dim, 0, length)


RIVALS: dict[str, tuple[int, Score]] = {
    "oracle top-k": (1, oracle),
    "window": (1, window),
    "random": (1, random),
    "pooled blocks": (BLOCK, pooled_blocks),
    "min/max pages": (1, pages),
}
"""By name: queries that share a list of keys, and the score."""
