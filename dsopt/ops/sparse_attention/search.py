"""Which keys a tile of queries looks at one by one, and which nodes stand for all others.

A tile searches with the mean of its queries (`selection.probes`). It never sees a part of a node: `prefix` is how many leaves all of
its rows may attend to, and a node at the end of the prefix whose partner is outside joins the candidates at its own level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dsopt.ops.sparse_attention.pyramid import Level, products, take
from dsopt.ops.sparse_attention.work import Work
from dsopt.sparse_schedule import LEAF, OPENED, Schedule


@dataclass(frozen=True)
class Tiles:
    """Some tiles of G heads. probe: (G, t, D), means of scaled queries.  prefix: (t,), leaves that all rows of a tile may attend to.

    near: (t, 2), the first key and the one behind the last that are picked before all others; twice the same for none.
    """

    probe: Tensor
    prefix: Tensor
    near: Tensor


@dataclass(frozen=True)
class Chosen:
    """Indices (G, t, count) int64 in ascending order, and which of them are any (bool)."""

    index: Tensor
    is_valid: Tensor


@dataclass(frozen=True)
class Cover:
    """Nodes (G, t, R) that lie one behind the other and together have every key of the prefix once.

    level, index: which nodes. What is no node comes last.
    """

    level: Tensor
    index: Tensor
    is_valid: Tensor

    @property
    def first(self) -> Tensor:
        """Return the first key of each node, in ascending order; of what is no node a number behind all keys."""
        return torch.where(self.is_valid, self.index * (LEAF << self.level), torch.iinfo(torch.int64).max)


def find_keys(tiles: Tiles, pyramid: Sequence[Level], key: Tensor, bias: Tensor, plan: Schedule, work: Work) -> Chosen:
    """Search from level to level for the `plan.picks` keys with the highest scores. key: (G, S, D); bias: (G, S), -inf where masked."""
    found = _complete(tiles, pyramid, plan.first)
    for level in range(plan.first, -1, -1):
        if level < plan.first:
            found = _children(found, tiles, level)
        scores = _node_scores(tiles, pyramid[level], found, work)
        found, _ = _best(found, _near_first(tiles, found.index, LEAF << level, scores), plan.beam, work)
    keys = (found.index[..., None] * LEAF + torch.arange(LEAF, device=key.device)).flatten(2)
    candidates = Chosen(keys, found.is_valid.repeat_interleave(LEAF, 2))
    scores = products(key, keys, tiles.probe) + take(bias, keys)
    work.add("scoring", candidates.is_valid.sum() * key.shape[2])
    scores = scores.masked_fill(~candidates.is_valid, -torch.inf)
    return _best(candidates, _near_first(tiles, keys, 1, scores), plan.picks, work)[0]


def _near_first(tiles: Tiles, index: Tensor, size: int, scores: Tensor) -> Tensor:
    """Give what has a key near the tile's own place the highest score, unless its score is -inf: masked, or no candidate."""
    start, end = tiles.near[:, :1], tiles.near[:, 1:]
    is_near = (index * size < end) & ((index + 1) * size > start) & (start < end)
    return scores.masked_fill(is_near & (scores > -torch.inf), torch.inf)


def find_cover(tiles: Tiles, pyramid: Sequence[Level], plan: Schedule, work: Work) -> Cover:
    """Open the best nodes of each level; the others, and all of the finest, are the cover."""
    found = _complete(tiles, pyramid, plan.top)
    parts: list[tuple[int, Chosen]] = []
    for level in range(plan.top, -1, -1):
        if level < plan.top:
            found = (
                _children(found, tiles, level) if level >= plan.fine else _orphan(tiles, level, found.index.shape[0])
            )
        if level > plan.fine:
            opened, place = _best(found, _node_scores(tiles, pyramid[level], found, work), OPENED, work)
            is_opened = torch.zeros_like(found.is_valid).scatter(2, place, opened.is_valid)
            parts.append((level, Chosen(found.index, found.is_valid & ~is_opened)))
            found = opened
        else:
            parts.append((level, found))
    unordered = Cover(
        torch.cat([torch.full_like(part.index, level) for level, part in parts], 2),
        torch.cat([part.index for _, part in parts], 2),
        torch.cat([part.is_valid for _, part in parts], 2),
    )
    order = unordered.first.argsort(dim=2, stable=True)
    return Cover(*(each.gather(2, order) for each in (unordered.level, unordered.index, unordered.is_valid)))


def _best(found: Chosen, scores: Tensor, count: int, work: Work) -> tuple[Chosen, Tensor]:
    """Return the `count` candidates with the highest scores, of equal ones the first, and their places, which stay in order."""
    work.sort(found.is_valid.sum(2))
    order = scores.argsort(dim=2, descending=True, stable=True)[..., :count].sort(2).values
    is_valid = found.is_valid.gather(2, order) & (scores.gather(2, order) > -torch.inf)
    return Chosen(found.index.gather(2, order), is_valid), order


def _node_scores(tiles: Tiles, level: Level, found: Chosen, work: Work) -> Tensor:
    """Return the score of each node's mean key, with the logarithm of its mean weight; (G, t, c), -inf for none."""
    weight = take(level.weight, found.index)
    scores = products(level.key, found.index, tiles.probe) / weight
    scores = scores + (weight / take(level.count, found.index)).log()
    work.add("scoring", found.is_valid.sum() * level.key.shape[2])
    return scores.masked_fill(~found.is_valid | (weight == 0), -torch.inf)


def _complete(tiles: Tiles, pyramid: Sequence[Level], level: int) -> Chosen:
    heads, count, _ = tiles.probe.shape
    index = torch.arange(pyramid[level].nodes, device=tiles.probe.device).expand(heads, count, -1)
    return Chosen(index, index < (tiles.prefix >> level)[:, None])


def _children(found: Chosen, tiles: Tiles, level: int) -> Chosen:
    """Return both children of each node, and the last node of the level if its partner is outside of the prefix."""
    orphan = _orphan(tiles, level, found.index.shape[0])
    index = torch.stack([2 * found.index, 2 * found.index + 1], 3).flatten(2)
    return Chosen(
        torch.cat([index, orphan.index], 2),
        torch.cat([found.is_valid.repeat_interleave(2, 2), orphan.is_valid], 2),
    )


def _orphan(tiles: Tiles, level: int, heads: int) -> Chosen:
    complete = (tiles.prefix >> level)[None, :, None].expand(heads, -1, -1)
    return Chosen((complete - 1).clamp(min=0), complete % 2 == 1)
