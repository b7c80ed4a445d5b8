"""How much a sparse attention may look at, and how much work that is."""

from __future__ import annotations

import math
from dataclasses import dataclass

LEAF = 8
"""Keys of the smallest nodes of the pyramid."""

FIRST_NODES = 512
"""A search begins at the finest level that has no more nodes than this."""

LEAST_BEAM = 48
"""Nodes that a search keeps from each level, at least: half as many as the keys that it shall find if that is more."""

OPENED, FINE_NODE = 2, 128
"""Of what is not picked, the `OPENED` best nodes of each level are looked at more closely, down to nodes of `FINE_NODE` keys."""

LEAST_REST = 2.0**-14
"""A node of which less than this part of its weight is not picked is left out: its mean would be a difference of rounding errors."""

UNITS = ("keys", "log2", "share")
"""What a budget counts: keys; keys for each doubling of the sequence; or a share of the multiply-adds of dense attention without a mask.

A causal mask halves the work of dense attention and leaves that of a tile's picks as it is, so there a share is about twice as much.
"""


@dataclass(frozen=True)
class Schedule:
    """What one head does for keys (S) and tiles of queries. picks: keys that a tile attends to one by one, S for dense.

    beam: nodes kept from each level.  first, top: levels where the search and the cover begin; level l has nodes of LEAF * 2^l keys.
    fine: the level of the smallest nodes of the cover.
    """

    picks: int
    beam: int
    first: int
    top: int
    fine: int

    @property
    def is_dense(self) -> bool:
        """Whether nothing is left out."""
        return self.picks < 0


DENSE = Schedule(-1, 0, 0, 0, 0)


def levels(keys: int) -> int:
    """Return the number of levels of the pyramid over `keys` keys: those with a complete node."""
    return max((keys // LEAF).bit_length(), 0)


def schedule(keys: int, picks: int) -> Schedule:
    """Return the schedule for a number of keys (S) and of picks; dense if a tile may look at all keys."""
    if picks < 0 or picks >= keys or keys < 2 * LEAF:
        return DENSE
    leaves, last = keys // LEAF, levels(keys) - 1
    first = next(level for level in range(last + 1) if leaves >> level <= FIRST_NODES)
    fine = min((FINE_NODE // LEAF).bit_length() - 1, last)
    top = max([fine, *(level for level in range(last + 1) if leaves >> level >= 2 * OPENED)])
    return Schedule(picks, max(LEAST_BEAM, (picks + 1) // 2), first, top, fine)


def picked(budget: float, unit: str, queries: int, keys: int, head: int, value_head: int, tile: int) -> int:
    """Return how many keys a tile may pick, -1 for all.

    budget: of `unit`, negative for all keys.  queries, keys: T and S.  head, value_head: D and E.  A budget that is no larger than what is
    paid without any pick gives 0.
    """
    if budget < 0:
        return -1
    if unit == "keys":
        return math.floor(budget)
    if unit == "log2":
        return math.ceil(budget * math.log2(max(keys, 1)))
    if budget >= 1:
        return -1
    allowed = budget * queries * keys * (head + value_head)
    low, high = 0, keys - 1
    while low < high:
        middle = (low + high + 1) // 2
        fits = work(schedule(keys, middle), queries, keys, head, value_head, tile) <= allowed
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def work(plan: Schedule, queries: int, keys: int, head: int, value_head: int, tile: int) -> float:
    """Return the multiply-adds of one head, without causality; an addition or a comparison counts as one.

    It is what the counter of the reference comes to where no key is masked, up to the last tile, which may be shorter, and to nodes
    whose keys are all picked. Under a causal mask the counter comes to about as much.
    """
    both = head + value_head
    if plan.is_dense:
        return float(queries * keys * both)
    leaves, tiles = keys // LEAF, -(-queries // tile)
    pooling = leaves * LEAF * both + sum(2 * (leaves >> level) * both for level in range(1, levels(keys)))
    scored = found = leaves >> plan.first
    compared = _sorting(scored)
    for level in reversed(range(plan.first)):
        found = 2 * min(found, plan.beam) + ((leaves >> level) & 1)
        scored, compared = scored + found, compared + _sorting(found)
    keys_scored = LEAF * min(found, plan.beam)
    picks = min(plan.picks, keys_scored)
    nodes, covered, also_compared = _cover(plan, leaves)
    search = head * (scored + keys_scored + covered) + compared + also_compared + _sorting(keys_scored)
    remainder = picks * both + nodes * both
    attended = tile * (picks + nodes + keys - leaves * LEAF) * both
    return float(pooling + queries * head + tiles * (search + remainder + attended))


def cover_size(plan: Schedule, leaves: int) -> tuple[int, int]:
    """Return how many nodes stand for `leaves` leaves, and how many scores that takes."""
    return _cover(plan, leaves)[:2]


def _cover(plan: Schedule, leaves: int) -> tuple[int, int, float]:
    """Return nodes, scores and comparisons."""
    candidates = leaves >> plan.top
    nodes = scored = opened = 0
    compared = 0.0
    for level in range(plan.top, -1, -1):
        if level < plan.top:
            candidates = (2 * opened if level >= plan.fine else 0) + ((leaves >> level) & 1)
        opened = 0
        if level > plan.fine:
            opened, scored, compared = min(OPENED, candidates), scored + candidates, compared + _sorting(candidates)
        nodes += candidates - opened
    return nodes, scored, compared


def _sorting(count: int) -> float:
    return count * math.log2(count) if count > 1 else 0.0
