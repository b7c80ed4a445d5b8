"""The softmax over picked keys, nodes and the keys at the tile's own place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dsopt.ops.sparse_attention.pyramid import Level, take
from dsopt.ops.sparse_attention.search import Chosen, Cover
from dsopt.ops.sparse_attention.work import Work
from dsopt.sparse_schedule import LEAST_REST


class Rows(NamedTuple):
    """What stands for keys in a softmax: logits' offsets (G, t, c), -inf for nothing; keys (G, t, c, D); values (G, t, c, E)."""

    offset: Tensor
    key: Tensor
    value: Tensor


def single_rows(found: Chosen, key: Tensor, value: Tensor, bias: Tensor) -> Rows:
    """Return keys that are attended to one by one."""
    offset = take(bias, found.index).masked_fill(~found.is_valid, -torch.inf)
    return Rows(offset, take(key, found.index), take(value, found.index))


def node_rows(cover: Cover, picks: Chosen, singles: Rows, pyramid: Sequence[Level], work: Work) -> Rows:
    """Return the mean of each node's keys that are not picked, with the logarithm of their weight. singles: the rows of the picks."""
    total, keys, values = (
        _of_nodes(cover, [getattr(each, name) for each in pyramid]) for name in ("weight", "key", "value")
    )
    node = (torch.searchsorted(cover.first.contiguous(), picks.index.contiguous(), right=True) - 1).clamp(min=0)
    taken = singles.offset.exp()
    rest = _less(total, node, taken)
    keys, values = (
        _less(sums, node, taken[..., None] * each) for sums, each in ((keys, singles.key), (values, singles.value))
    )
    both = keys.shape[3] + values.shape[3]
    work.add("residual", (picks.is_valid.sum() + cover.is_valid.sum()) * both)
    # written so that what is not a number stays: it would otherwise be left out without a word
    is_any = cover.is_valid & ~(rest <= LEAST_REST * total)
    safe = torch.where(is_any, rest, 1.0)
    means = (torch.where(is_any[..., None], each / safe[..., None], 0.0) for each in (keys, values))
    return Rows(safe.log().masked_fill(~is_any, -torch.inf), *means)


def _of_nodes(cover: Cover, levels: Sequence[Tensor]) -> Tensor:
    """Return what some levels hold of the nodes of a cover."""
    before = torch.tensor([0, *(each.shape[1] for each in levels)], device=cover.index.device).cumsum(0)
    index = torch.where(cover.is_valid, before[cover.level] + cover.index, 0)
    found = take(torch.cat(list(levels), 1), index)
    return found * (cover.is_valid if found.dim() == 3 else cover.is_valid[..., None])


def _less(sums: Tensor, node: Tensor, taken: Tensor) -> Tensor:
    """Take (G, t, m, ...) out of sums (G, t, R, ...), each out of one of the R nodes. node: (G, t, m) int64."""
    heads, tiles, count = sums.shape[:3]
    flat = node + torch.arange(0, heads * tiles * count, max(count, 1), device=node.device).view(heads, tiles, 1)
    return sums.flatten(0, 2).index_add(0, flat.flatten(), taken.flatten(0, 2), alpha=-1).view(sums.shape)


def attend(query: Tensor, rows: Sequence[Rows], hidden: Sequence[Tensor | None], work: Work) -> Tensor:
    """Return the softmax-weighted values (G, t, tile, E) of (G, t, tile, D) scaled queries, 0 for a query without any key.

    hidden: for each part of the rows, where (t, tile, c) bool a query may not see it, None for nowhere.
    """
    logits = torch.cat(
        [
            _hide(query @ part.key.transpose(2, 3) + part.offset[:, :, None], mask)
            for part, mask in zip(rows, hidden, strict=True)
        ], 3,
    )  # fmt: skip
    values = torch.cat([part.value for part in rows], 2)
    work.add("picks", (logits > -torch.inf).sum() * (query.shape[3] + values.shape[3]))
    highest = logits.amax(3, keepdim=True) if logits.shape[3] else logits.new_zeros((*logits.shape[:3], 1))
    parts = (logits - highest.detach().nan_to_num(neginf=0.0)).exp()
    total = parts.sum(3, keepdim=True)
    return (parts @ values) / torch.where(total > 0, total, 1.0)


def _hide(logits: Tensor, mask: Tensor | None) -> Tensor:
    return logits if mask is None else logits.masked_fill(mask, -torch.inf)
