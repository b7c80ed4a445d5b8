"""Dynamic sparse attention in O(n log n), written for reading: hierarchical retrieval by tiles, and a residual for everything else.

1. Keys and values are added up in a pyramid of nodes (`pyramid`).
2. Each tile of queries searches the pyramid with its mean query for the keys with the highest scores (`search.find_keys`).
3. All other keys are covered by nodes, small where scores are high, large elsewhere (`search.find_cover`).
4. One softmax runs over the picked keys and the nodes: a node counts as its mean key, its mean value, and the logarithm of its count,
   picked keys taken out (`attend`). Under a causal mask the keys at the tile's own place are attended to exactly.

Selection has no gradient: which keys are picked is taken as given (straight through), and keys, values, queries and bias get the
gradient of step 4, through the means of nodes as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dsopt.ops.sparse_attention.attend import Rows, attend, node_rows, single_rows
from dsopt.ops.sparse_attention.pyramid import Level, build
from dsopt.ops.sparse_attention.schedule import FIRST_NODES, LEAF, UNITS, Schedule, picked, schedule
from dsopt.ops.sparse_attention.search import Chosen, Tiles, find_cover, find_keys
from dsopt.ops.sparse_attention.work import Work

CAUSAL = ("none", "start", "end")
"""Which keys a query sees: all; those up to its own number; or, where the last query belongs to the last key, those up to its own place."""

_ELEMENTS = 1 << 24
"""Numbers that are gathered at a time, at most: more tiles are done one after the other."""


def sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    causal: str,
    scale: float | None,
    budget: Sequence[float],
    unit: str,
    tile: int,
    window: int,
    work: Work | None = None,
) -> Tensor:
    """Return attention (B, H, T, E) that looks at some keys one by one and at the others through their means.

    query: (B, H, T, D); key: (B, K, S, D); value: (B, K, S, E), float; H a multiple of K: K < H for grouped and multi-query heads.
    bias: broadcastable to (B, H, 1, S): bool (True: attend) or added to the scores.  causal: one of `CAUSAL`.  scale: None for 1/sqrt(D).
    budget: of `unit` (see `schedule.UNITS`), one number or one a head; negative for all keys.  tile: queries that share a list of
    keys, 1 for a search by each.  window: at least this many keys on both sides of the tile's own place are picked.
    A query that may attend to nothing gives 0. Raises ValueError.
    """
    check(query, key, value, bias, causal, budget, unit, tile, window)
    work = Work() if work is None else work
    batch, heads, queries, head = query.shape
    keys, value_head = key.shape[2], value.shape[3]
    dtype = torch.promote_types(query.dtype, torch.float32)
    q = query.to(dtype) * (scale if scale is not None else 1 / math.sqrt(head))
    k, v = (each.to(dtype).repeat_interleave(heads // each.shape[1], 1) for each in (key, value))
    b = _additive(bias, dtype, q).expand(batch, heads, 1, keys)[:, :, 0]
    budgets = list(budget) if len(budget) > 1 else [float(budget[0])] * heads
    picks = [picked(each, unit, queries, keys, head, value_head, tile) for each in budgets]
    result = q.new_zeros((batch, heads, queries, value_head))
    for count in sorted(set(picks)):
        members = [number for number, each in enumerate(picks) if each == count]
        some_q, some_k, some_v, some_b = (each[:, members].flatten(0, 1) for each in (q, k, v, b))
        some = _heads(some_q, some_k, some_v, some_b, causal, schedule(keys, count), tile, window, work)
        some = some.reshape(batch, len(members), queries, value_head)
        result = result.index_copy(1, torch.tensor(members, device=q.device), some)
    return result.to(query.dtype)


def check(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, causal: str, budget: Sequence[float], unit: str, tile: int, window: int
) -> None:  # fmt: skip
    """Raise ValueError for what no implementation takes."""
    if not query.dim() == key.dim() == value.dim() == 4:
        raise ValueError(f"query, key and value must have 4 dims, not {query.dim()}, {key.dim()} and {value.dim()}")
    heads, groups = query.shape[1], key.shape[1]
    if not (
        query.shape[0] == key.shape[0] == value.shape[0]
        and key.shape[1:3] == value.shape[1:3]
        and query.shape[3] == key.shape[3]
    ):
        raise ValueError(f"shapes do not fit: query {_shape(query)}, key {_shape(key)}, value {_shape(value)}")
    if groups == 0 or heads % groups:
        raise ValueError(f"{heads} heads of queries are no multiple of {groups} heads of keys")
    if not query.is_floating_point() or {key.dtype, value.dtype} != {query.dtype}:
        raise ValueError(f"dtypes must be one float type, not {query.dtype}, {key.dtype} and {value.dtype}")
    if bias is not None and (bias.dim() != 4 or bias.shape[2] != 1):
        raise ValueError(f"the bias must be (B or 1, H or 1, 1, S), the same for all queries, not {_shape(bias)}")
    if causal not in CAUSAL:
        raise ValueError(f"causal is {causal!r} and must be one of {', '.join(CAUSAL)}")
    if unit not in UNITS:
        raise ValueError(f"unit is {unit!r} and must be one of {', '.join(UNITS)}")
    if len(budget) not in (1, heads):
        raise ValueError(f"budget has {len(budget)} numbers and must have 1, or {heads}, one a head")
    if tile < 1 or window < 0:
        raise ValueError(f"tile is {tile} and must be at least 1; window is {window} and must be at least 0")


def _shape(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)


def _additive(bias: Tensor | None, dtype: torch.dtype, like: Tensor) -> Tensor:
    """Return the bias in floats, its highest number in each head 0: what is added to all scores changes nothing."""
    if bias is None:
        return like.new_zeros((1, 1, 1, 1))
    if bias.dtype == torch.bool:
        return torch.zeros_like(bias, dtype=dtype).masked_fill(~bias, -torch.inf)
    added = bias.to(dtype)
    return added - added.amax(3, keepdim=True).detach().nan_to_num(neginf=0.0) if added.shape[3] else added


def _heads(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, causal: str, plan: Schedule, tile: int, window: int, work: Work
) -> Tensor:
    """Attend in heads with one schedule. q: (G, T, D), scaled; k: (G, S, D); v: (G, S, E); bias: (G, S). Returns (G, T, E)."""
    heads, queries, head = q.shape
    keys, both = k.shape[1], head + v.shape[2]
    offset = keys - queries if causal == "end" else 0
    number = torch.arange(queries, device=q.device)
    sees = (number + offset + 1).clamp(0, keys) if causal != "none" else torch.full_like(number, keys)
    work.dense += heads * float(sees.sum()) * both
    if heads == 0 or queries == 0:
        return q.new_zeros((heads, queries, v.shape[2]))
    if plan.is_dense:
        return _dense(q, k, v, bias, sees, work)
    weight = bias.exp()
    pyramid = build(k, v, weight, work)
    work.add("scoring", heads * queries * head)
    step = max(1, _ELEMENTS // (heads * max(FIRST_NODES, 4 * plan.beam * LEAF) * both))
    results = []
    for first in range(0, queries, step * tile):
        rows = slice(first, min(first + step * tile, queries))
        some, seen, is_row = _in_tiles(q[:, rows], sees[rows], tile)
        near = torch.arange(first, first + some.shape[1] * tile, tile, device=q.device)[:, None] + offset
        near = near + torch.tensor([-window, tile + window], device=q.device) * (1 if window else 0)
        probe = some.sum(2) / is_row.sum(1)[:, None]
        tiles = Tiles(probe, (seen.amin(1) // LEAF).clamp(max=pyramid[0].nodes), near)
        results.append(_tiles(some, seen, is_row, tiles, pyramid, (k, v, bias, weight), plan, work))
    return torch.cat(results, 1)


def _in_tiles(q: Tensor, sees: Tensor, tile: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries (G, t, tile, D), how many keys each sees (t, tile), and which are not there to fill up the last tile only."""
    missing = -q.shape[1] % tile
    number = torch.arange(q.shape[1] + missing, device=q.device)
    filled = torch.cat([q, q.new_zeros((q.shape[0], missing, q.shape[2]))], 1)
    seen = torch.cat([sees, sees[-1:].expand(missing)])
    is_row = (number < q.shape[1]).view(-1, tile)
    return filled.view(q.shape[0], -1, tile, q.shape[2]), seen.view(-1, tile), is_row


def _tiles(
    q: Tensor, seen: Tensor, is_row: Tensor, tiles: Tiles, pyramid: Sequence[Level], keys: tuple[Tensor, Tensor, Tensor, Tensor],
    plan: Schedule, work: Work,
) -> Tensor:  # fmt: skip
    """Select and attend for some tiles (G, t, tile, D). Returns (G, t * tile less what fills up, E)."""
    k, v, bias, weight = keys
    with torch.no_grad():
        picks = find_keys(tiles, pyramid, k, bias, plan, work)
        cover = find_cover(tiles, pyramid, plan, work)
    first = tiles.prefix * LEAF
    count = int((seen.amax(1) - first).clamp(min=0).max())
    own = first[:, None] + torch.arange(count, device=q.device)
    exact = own.clamp(max=max(k.shape[1] - 1, 0)).expand(k.shape[0], -1, -1)
    rows = [
        single_rows(picks, k, v, bias),
        node_rows(cover, picks, pyramid, k, v, weight, work),
        single_rows(Chosen(exact, torch.ones_like(exact, dtype=torch.bool)), k, v, bias),
    ]
    nobody = ~is_row[..., None]
    result = attend(q, rows, [nobody, nobody, nobody | (own[:, None] >= seen[..., None])], work)
    return result.flatten(1, 2)[:, : int(is_row.sum())]


def _dense(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, sees: Tensor, work: Work) -> Tensor:
    """Attend to all keys, some queries at a time."""
    keys = Rows(bias[:, None], k[:, None], v[:, None])
    number = torch.arange(k.shape[1], device=q.device)
    step = max(1, _ELEMENTS // (q.shape[0] * max(k.shape[1], 1)))
    parts = [
        attend(q[:, None, rows], [keys], [(number >= sees[rows, None])[None]], work)[:, 0]
        for rows in (slice(first, first + step) for first in range(0, q.shape[1], step))
    ]
    return torch.cat(parts, 1)
