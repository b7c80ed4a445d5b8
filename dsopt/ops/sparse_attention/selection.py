"""What each tile of queries looks at: found once, and attended to by any implementation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dsopt.ops.sparse_attention.heads import Heads, check, offset, plans, together
from dsopt.ops.sparse_attention.pyramid import Level, build
from dsopt.ops.sparse_attention.search import Chosen, Cover, Tiles, find_cover, find_keys
from dsopt.ops.sparse_attention.work import Work
from dsopt.sparse_schedule import FIRST_NODES, LEAF

_ELEMENTS = 1 << 24
"""Numbers that are gathered at a time, at most: more tiles are done one after the other."""


@dataclass(frozen=True)
class Selection:
    """What t tiles look at: picks, nodes and a range that together have every key that any query of the tile may see, once.

    Of all heads, with (B, H) in front of all shapes; inside the reference of G heads with one schedule, with (G) in front.
    picks: (.., t, m), keys that are attended to one by one and taken out of the nodes that have them.  cover: (.., t, R), nodes.
    exact: (.., t, 2) int64, the first key behind the nodes, and the one behind the last that a query of the tile sees: between them,
    each query attends to those that it sees. A dense head has all of its keys there.

    Picks and nodes are in the order of their keys, and what is not valid comes last. A masked key is never picked; it has its place in a
    node or in the range, where it weighs nothing. A node is listed even if all of its keys are picked.
    """

    picks: Chosen
    cover: Cover
    exact: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors of all parts, those of the picks first."""
        picks, cover = self.picks, self.cover
        return (picks.index, picks.is_valid, cover.level, cover.index, cover.is_valid, self.exact)

    @staticmethod
    def of(tensors: Sequence[Tensor]) -> Selection:
        """Return the selection with these tensors."""
        return Selection(Chosen(*tensors[:2]), Cover(*tensors[2:5]), tensors[5])

    def of_heads(self, members: Sequence[int]) -> Selection:
        """Return the part (G, t, ...) of some heads of (B, H, t, ...)."""
        return Selection.of([each[:, list(members)].flatten(0, 1) for each in self.tensors])

    def of_tiles(self, tiles: slice) -> Selection:
        """Return some tiles of (G, t, ...)."""
        return Selection.of([each[:, tiles] for each in self.tensors])


def select(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, causal: str, scale: float | None, budget: Sequence[float], unit: str,
    tile: int, window: int,
) -> Selection:  # fmt: skip
    """Return what the operator looks at, with (B, H) in front; the arguments are the operator's. Raises ValueError.

    An implementation is compared with `reference.attend_selected` on this: two searches that round scores in different ways may find
    different keys.
    """
    check(query, key, value, bias, causal, budget, unit, tile, window)
    batch, heads, queries, _ = query.shape
    members: list[int] = []
    found: list[Selection] = []
    with torch.no_grad():
        for group in together(query, key, value, bias, causal, scale, plans(query, key, value, budget, unit, tile)):
            some = search(group, pyramid_of(group, Work()), causal, tile, window, Work())
            heads_of = (batch, len(group.members))
            found.append(Selection.of([each.reshape(*heads_of, *each.shape[1:]) for each in _in_front(some).tensors]))
            members += group.members
    if not found:
        return _nothing(torch.zeros(batch, heads, -(-queries // tile), 2, dtype=torch.int64, device=query.device))
    order = torch.tensor(members, device=query.device).argsort()
    return Selection.of([_joined(parts)[:, order] for parts in zip(*(each.tensors for each in found), strict=True)])


def _nothing(exact: Tensor) -> Selection:
    """Return a selection without picks and nodes."""
    none = exact[..., :0]
    return Selection(Chosen(none, none.bool()), Cover(none, none, none.bool()), exact)


def _in_front(found: Selection) -> Selection:
    """Put the picks that are valid in front of the others."""
    order = (~found.picks.is_valid).to(torch.uint8).argsort(dim=-1, stable=True)
    picks = Chosen(found.picks.index.gather(-1, order), found.picks.is_valid.gather(-1, order))
    return Selection(picks, found.cover, found.exact)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Put (B, h, t, c) of some heads beside those of others, filled up to the largest c."""
    width = max(part.shape[3] for part in parts)
    return torch.cat([F.pad(part, (0, width - part.shape[3])) for part in parts], 1)


def pyramid_of(heads: Heads, work: Work) -> list[Level]:
    """Return the levels over the keys of some heads; none for dense ones."""
    return [] if heads.plan.is_dense else build(heads.key, heads.value, heads.bias.exp(), work)


def search(heads: Heads, pyramid: Sequence[Level], causal: str, tile: int, window: int, work: Work) -> Selection:
    """Return what the tiles of some heads look at, (G, t, ...). tile, window, causal: the operator's."""
    count, queries, head = heads.query.shape
    first = torch.arange(0, queries, tile, device=heads.query.device)
    last = (first + tile).clamp(max=queries) - 1
    end = heads.seen[last]  # no query sees less than the one before it
    if heads.plan.is_dense or not count or not queries:
        return _nothing(torch.stack([torch.zeros_like(end), end], 1).expand(count, -1, -1))
    prefix = (heads.seen[first] // LEAF).clamp(max=pyramid[0].nodes)
    start = first + offset(queries, heads.key.shape[1], causal)
    near = torch.stack([start - window, start + tile + window], 1) if window else torch.stack([start, start], 1)
    work.add("scoring", count * queries * head)
    probe = probes(heads.query, tile, causal != "none")
    found = []
    for some in steps(heads, len(first)):
        part = Tiles(probe[:, some], prefix[some], near[some])
        picks = find_keys(part, pyramid, heads.key, heads.bias, heads.plan, work)
        exact = torch.stack([prefix[some] * LEAF, end[some]], 1).expand(count, -1, -1)
        found.append(Selection(picks, find_cover(part, pyramid, heads.plan, work), exact))
    whole = Selection.of([torch.cat(parts, 1) for parts in zip(*(each.tensors for each in found), strict=True)])
    nodes = max(1, int(whole.cover.is_valid.sum(2).max()))
    return Selection(whole.picks, Cover(*(each[..., :nodes] for each in whole.tensors[2:5])), whole.exact)


def probes(query: Tensor, tile: int, is_causal: bool) -> Tensor:
    """Return the mean query (G, t, D) that each tile searches with, of (G, T, D).

    It is that of the tile's own queries. Under a causal mask it is that of the `tile` queries that end with the tile's first one: what a
    query looks at must not depend on later ones.
    """
    queries, size = query.shape[1], min(tile, query.shape[1])
    first = torch.arange(0, queries, size, device=query.device)
    if is_causal:
        before = F.pad(query, (0, 0, size - 1, 0))[:, : len(first) * size]
        return in_tiles(before, size).sum(2) / (first + 1).clamp(max=size)[:, None]
    return in_tiles(query, size).sum(2) / (queries - first).clamp(max=size)[:, None]


def steps(heads: Heads, tiles: int) -> Iterator[slice]:
    """Cut tiles into as many at a time as memory is to be spent on."""
    plan = heads.plan
    size = max(1, _ELEMENTS // (len(heads.query) * max(FIRST_NODES, 4 * plan.beam * LEAF) * heads.both))
    return (slice(first, first + size) for first in range(0, tiles, size))


def rows_at_once(heads: Heads) -> Iterator[slice]:
    """Cut queries that see all keys into as many at a time."""
    size = max(1, _ELEMENTS // (len(heads.query) * max(heads.key.shape[1], 1)))
    return (slice(first, first + size) for first in range(0, heads.query.shape[1], size))


def in_tiles(rows: Tensor, tile: int) -> Tensor:
    """Return (G, T, D) as (G, t, tile, D), filled up with zeros. A single tile is no longer than it must be."""
    count = rows.shape[1]
    size = min(tile, count)
    return F.pad(rows, (0, 0, 0, -count % size)).view(rows.shape[0], -1, size, rows.shape[2])
