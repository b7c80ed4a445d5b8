"""Dynamic sparse attention in O(n log n), written for reading: hierarchical retrieval by tiles, and a residual for everything else.

1. Keys and values are added up in a pyramid of nodes (`pyramid`).
2. Each tile of queries searches the pyramid with its mean query for the keys with the highest scores (`search.find_keys`); under a
   causal mask with the mean of queries up to its first, so that nothing depends on what comes later (`selection.probes`).
3. All other keys are covered by nodes, small where scores are high, large elsewhere (`search.find_cover`).
4. One softmax runs over the picked keys and the nodes: a node counts as its mean key, its mean value, and the logarithm of its count,
   picked keys taken out (`attend`). Under a causal mask the keys at the tile's own place are attended to exactly.

Selection has no gradient: which keys are picked is taken as given (straight through), and keys, values, queries and bias get the
gradient of step 4, through the means of nodes as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dsopt.ops.sparse_attention.attend import Rows, attend, node_rows, single_rows
from dsopt.ops.sparse_attention.heads import Heads, check, plans, together
from dsopt.ops.sparse_attention.pyramid import Level
from dsopt.ops.sparse_attention.search import Chosen
from dsopt.ops.sparse_attention.selection import Selection, in_tiles, pyramid_of, rows_at_once, search, steps
from dsopt.ops.sparse_attention.work import Work


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
    bias: broadcastable to (B, H, 1, S): bool (True: attend) or added to the scores.  causal: one of `heads.CAUSAL`.  scale: None for
    1/sqrt(D).  budget: of `unit` (see `schedule.UNITS`), one number or one a head; negative for all keys.  tile: queries that share a
    list of keys, 1 for a search by each.  window: keys on both sides of the tile's own place that are picked before all others, the
    tile's own among them as far as nodes would have them; 0 for none.

    Keys with equal scores are picked from the lowest index on. A query that may attend to nothing gives 0. Numbers that are none reach
    the queries that see them. In a node, a key whose bias is so far below the highest of its head that exp gives 0 weighs nothing.
    Raises ValueError.
    """
    check(query, key, value, bias, causal, budget, unit, tile, window)
    work = Work() if work is None else work
    results = []
    groups = together(query, key, value, bias, causal, scale, plans(query, key, value, budget, unit, tile))
    for heads in groups:
        pyramid = pyramid_of(heads, work)
        with torch.no_grad():
            found = search(heads, pyramid, causal, tile, window, work)
        results.append(_attend(heads, pyramid, found, tile, work))
    return _apart(groups, results, query, value)


def attend_selected(
    selection: Selection, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, causal: str, scale: float | None,
    budget: Sequence[float], unit: str, tile: int, window: int,
) -> Tensor:  # fmt: skip
    """Return what the operator gives for a selection that is already made, perhaps in another precision. Raises ValueError.

    selection: from `selection.select` with the same arguments; dtypes may differ. The other arguments are the operator's.
    """
    check(query, key, value, bias, causal, budget, unit, tile, window)
    groups = together(query, key, value, bias, causal, scale, plans(query, key, value, budget, unit, tile))
    results = []
    for heads in groups:
        results.append(_attend(heads, pyramid_of(heads, Work()), selection.of_heads(heads.members), tile, Work()))
    return _apart(groups, results, query, value)


def _apart(groups: Sequence[Heads], results: Sequence[Tensor], query: Tensor, value: Tensor) -> Tensor:
    """Return the results (G, T, E) of groups of heads as (B, H, T, E)."""
    batch, _, queries, _ = query.shape
    whole = query.new_zeros((*query.shape[:3], value.shape[3]))
    for heads, each in zip(groups, results, strict=True):
        members = torch.tensor(heads.members, device=query.device)
        whole = whole.index_copy(1, members, each.to(query.dtype).view(batch, len(members), queries, each.shape[2]))
    return whole


def _attend(heads: Heads, pyramid: Sequence[Level], found: Selection, tile: int, work: Work) -> Tensor:
    """Attend to what was found. Returns (G, T, E)."""
    count, queries, _ = heads.query.shape
    work.dense += count * float(heads.seen.sum()) * heads.both
    if count == 0 or queries == 0:
        return heads.query.new_zeros((count, queries, heads.value.shape[2]))
    if heads.plan.is_dense:
        return _dense(heads, work)
    # rows that only fill up the last tile see nothing
    q, seen = in_tiles(heads.query, tile), in_tiles(heads.seen[None, :, None], tile)[0, :, :, 0]
    is_row = in_tiles(torch.ones_like(heads.seen)[None, :, None], tile)[0, :, :, 0] > 0
    parts = [
        _tiles(heads, (q[:, some], seen[some], is_row[some]), pyramid, found.of_tiles(some), work)
        for some in steps(heads, q.shape[1])
    ]
    return torch.cat(parts, 1).flatten(1, 2)[:, :queries]


def _tiles(
    heads: Heads, rows: tuple[Tensor, Tensor, Tensor], pyramid: Sequence[Level], found: Selection, work: Work
) -> Tensor:
    """Attend for some tiles, (G, t, tile, E). rows: queries (G, t, tile, D), how many keys each sees, and which are any (t, tile)."""
    q, seen, is_row = rows
    start, end = found.exact.unbind(-1)
    own = start[..., None] + torch.arange(int((end - start).max()), device=q.device)
    exact = Chosen(own.clamp(max=heads.key.shape[1] - 1), own < end[..., None])
    picks = single_rows(found.picks, heads.key, heads.value, heads.bias)
    nodes = node_rows(found.cover, found.picks, picks, pyramid, work)
    nobody = ~is_row[..., None]
    unseen = nobody | (own[:, :, None] >= seen[..., None])
    return attend(
        q, [picks, nodes, single_rows(exact, heads.key, heads.value, heads.bias)], [nobody, nobody, unseen], work
    )


def _dense(heads: Heads, work: Work) -> Tensor:
    """Attend to all keys, some queries at a time."""
    keys = Rows(heads.bias[:, None], heads.key[:, None], heads.value[:, None])
    number = torch.arange(heads.key.shape[1], device=heads.key.device)
    parts = [
        attend(heads.query[:, None, some], [keys], [(number >= heads.seen[some, None])[None]], work)[:, 0]
        for some in rows_at_once(heads)
    ]
    return torch.cat(parts, 1)
