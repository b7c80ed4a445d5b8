"""Pack buffers with fixed lives into one block of memory: greedily at once, then by branch and bound until proven smallest.

**Sections.** Time is cut into sections: step ranges, each with one largest set of buffers alive together. Where no buffer crosses
from one section to the next, the two sides are packed apart; the search cuts again wherever what is left to place falls apart.

**Search.** If a capacity suffices, then there is a packing of least sum of offsets, in which every buffer lies at 0 or on another
(its floor). A node has the floors of the buffers without a place; it is branched on one of them, the lowest (ties by an order of the
buffers) below which no other can fit: it lies on its floor, or it is barred and must lie on one that is not yet placed. Where the
canonical order by offset of Moffitt (MiniMalloc, ASPLOS 2023) decides all buffers in one sequence, which mixes distant times, a
barred buffer constrains its neighbours in time only. A node fails, or buffers rise, by

- sections: their buffers, stacked in order of least offset, must end below the capacity (one machine with release dates);
- a buffer too high to lie below all others of a section lies above one of them (not-first rule of Carlier and Pinson 1989);
- a barred buffer lies above the lowest end of its neighbours; if it fits below all of them, it would lie on its floor in the
  packing looked for, so there is none here; one that is not barred and fits below all others is placed at once;
- equal buffers lie in order.

Such a search is lucky or lost, depending on the order: eight orders take turns, with four times the nodes each turn.

All of it is deterministic: budgets count nodes, never seconds. The C code and its twin in Python take the same steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dsopt.passes.memory.greedy import pack_greedily
from dsopt.passes.memory.packing_native import native_engine
from dsopt.passes.memory.packing_twin import EXHAUSTED, OUT_OF_NODES, SOLVED, PythonEngine
from dsopt.passes.memory.sections import Part, split

Array = np.ndarray[Any, Any]

MAX_BUFFERS = 1 << 20
MAX_BYTES = 1 << 61
"""Of all buffers together, and of a capacity: sums of offsets and sizes stay within 64 bits."""

MAX_SEARCHED = 1 << 14
"""Buffers of one part that are searched for: a node takes time in proportion to them."""

_SEARCH_WORK = {"c": 1_200_000_000, "python": 24_000_000}
"""How often all nodes together may look at a section of a buffer (a buffer itself counts as eight), by default: a few seconds."""
_MOST_NODES = 200_000
_QUICK = 600
"""Buffers above which the work grows with their number only: 0.1 seconds for each thousand."""


class Engine(Protocol):
    """What does the searching: `NativeEngine`, or `PythonEngine` where there is no compiler."""

    name: str

    def search(self, first: Any, last: Any, size: Any, same: Any, capacity: int, budget: int) -> tuple[int, Any, int]:
        """Search for a packing within a capacity; return SOLVED, EXHAUSTED or OUT_OF_NODES, offsets, and nodes."""
        ...

    def fit(
        self, first: Any, last: Any, size: Any, by_first: Any, pairs: int, orders: Any, enough: int
    ) -> tuple[Any, int]:
        """Place the buffers in each order; return the best offsets and where they end."""
        ...


@dataclass(frozen=True)
class Packing:
    """Offsets in bytes, one a buffer, and where the highest buffer ends. No packing ends below `bound`; `nodes` were searched."""

    offsets: Array
    height: int
    bound: int
    nodes: int
    engine: str

    @property
    def optimal(self) -> bool:
        """Return whether no packing is smaller."""
        return self.height == self.bound


def pack(
    first: Sequence[int] | Array,
    end: Sequence[int] | Array,
    size: Sequence[int] | Array,
    *,
    capacity: int | None = None,
    nodes: int | None = None,
    engine: Engine | None = None,
) -> Packing:
    """Place buffers of `size` bytes that live during steps first to end - 1, so that none alive together overlap.

    With a capacity, a packing that ends there or below is enough; without, the smallest is looked for. nodes: how many nodes to
    search at most; None chooses by the size of the problem, so that about 0.1 seconds are spent for a thousand buffers, and 0 is greedy.
    Deterministic for equal arguments; offsets are sums of sizes. Raises ValueError for lives, sizes or numbers out of range.
    """
    begins, ends, sizes = _checked(first, end, size, capacity, nodes)
    chosen = engine or native_engine() or PythonEngine()
    unit = int(np.gcd.reduce(sizes)) if len(sizes) else 1
    parts = split(begins, ends, sizes // unit)
    bound = max((part.bound for part in parts), default=0)
    enough = bound if capacity is None else max(bound, capacity // unit)
    offsets = np.zeros(len(sizes), np.int64)
    height, proven, searched = 0, bound, 0
    effort = max(1_000_000, 1_000 * len(sizes))
    for part in parts:
        budget = _default_nodes(part, len(sizes), chosen) if nodes is None else max(nodes - searched, 0)
        one = _Minimizer(part, bound, enough, capacity is not None, chosen)
        one.run(effort, budget)
        offsets[part.numbers] = one.offsets
        height, proven, searched = max(height, one.height), max(proven, one.bound), searched + one.nodes
    return Packing(offsets * unit, height * unit, min(proven, height) * unit, searched, chosen.name)


def _checked(
    first: Sequence[int] | Array,
    end: Sequence[int] | Array,
    size: Sequence[int] | Array,
    capacity: int | None,
    nodes: int | None,
) -> tuple[Array, Array, Array]:
    begins, ends, sizes = map(_integers, (first, end, size))
    if not len(begins) == len(ends) == len(sizes):
        raise ValueError(
            f"{len(begins)} first steps, {len(ends)} ends and {len(sizes)} sizes are not of the same buffers"
        )
    if len(sizes) > MAX_BUFFERS:
        raise ValueError(f"{len(sizes):,} buffers are more than {MAX_BUFFERS:,}")
    if len(sizes) and (int(sizes.min()) < 1 or not (begins < ends).all()):
        wrong = int(np.flatnonzero((sizes < 1) | (begins >= ends))[0])
        raise ValueError(
            f"buffer {wrong}: {sizes[wrong]} bytes during steps {begins[wrong]} to {ends[wrong]} (exclusive) is no buffer"
        )
    if sum(sizes.tolist()) >= MAX_BYTES:
        raise ValueError(f"the sizes of all buffers together exceed {MAX_BYTES:,} bytes")
    if capacity is not None and not 0 <= capacity < MAX_BYTES:
        raise ValueError(f"the capacity is {capacity} and must be 0 to {MAX_BYTES:,}")
    if nodes is not None and nodes < 0:
        raise ValueError(f"the number of nodes is {nodes} and must not be negative")
    return begins, ends, sizes


def _integers(values: Sequence[int] | Array) -> Array:
    array = np.asarray(values).reshape(-1)
    if len(array) and (array.dtype.kind not in "iu" or int(array.max()) > np.iinfo(np.int64).max):
        raise ValueError(f"steps and sizes are integers of 64 bits, not {array.dtype} such as {array[0]}")
    return array.astype(np.int64)


def _default_nodes(part: Part, count: int, engine: Engine) -> int:
    """Return a number of nodes that takes about as long as the greedy tries of large problems, and a few seconds for small ones.

    A search of few nodes for many buffers would not get to its first packing, so there is none then.
    """
    work = _SEARCH_WORK[engine.name] if count <= _QUICK else _SEARCH_WORK[engine.name] // 50 * count // 1000
    nodes = min(_MOST_NODES, work // int((part.last - part.first).sum() + 8 * len(part.size)))
    return nodes if 4 * nodes >= len(part.size) else 0


class _Minimizer:
    """The search for a packing of one part that ends at `enough` or below, or else as low as found; `floor` is the lowest of use."""

    def __init__(self, part: Part, floor: int, enough: int, has_capacity: bool, engine: Engine) -> None:
        self._part, self._floor, self._enough, self._engine = part, floor, enough, engine
        self._has_capacity = has_capacity
        self._orders = [part.reordered(order) for order in _orders(part)] if len(part.size) <= MAX_SEARCHED else []
        self._same = [ordered.same for ordered in self._orders]
        self._refuted = floor - 1  # the highest capacity known not to suffice, if that of the floor is
        self._nodes_left = 0
        self.nodes = 0
        self.offsets, self.height = np.zeros(len(part.size), np.int64), 0

    @property
    def bound(self) -> int:
        """Return a height that no packing is below."""
        return max(self._part.bound, self._refuted + 1) if self._refuted >= self._floor else self._part.bound

    def run(self, effort: int, nodes: int) -> None:
        """Pack greedily, then search until the packing is proven smallest or the nodes are spent.

        Each round tries the lowest capacity that may suffice, then the one that is enough, then halves what is left; the next round
        has four times the nodes. Where a capacity is given, only a third of the nodes is for others.
        """
        self.offsets, self.height = pack_greedily(self._part, self._enough, effort, self._engine)
        kept = nodes // 3 if self._has_capacity else 0
        self._nodes_left = nodes - kept
        share = 2 * len(self._part.size)
        while self._is_open(self._refuted):
            missed = self._refuted
            for target in sorted({missed + 1, max(self._enough, missed + 1)}):
                missed = self._aim(target, missed, share)
            if not self._has_capacity:
                self._halve(missed, share)
            share *= 4
        self._nodes_left += kept
        self._halve(self._refuted, len(self._part.size) * 3 // 2)

    def _is_open(self, missed: int) -> bool:
        return self._orders != [] and self._nodes_left > 0 and self.height > max(self._enough, missed + 1)

    def _halve(self, missed: int, share: int) -> None:
        while self._is_open(missed) and self.height - missed > self.height >> 8:
            missed = self._aim((missed + self.height) // 2, missed, share)

    def _aim(self, target: int, missed: int, share: int) -> int:
        """Search for a packing that ends at `target` or below; return the highest capacity for which there is none, or none found."""
        if not missed < target < self.height:
            return missed
        status = self._try(target, share)
        if status == EXHAUSTED:
            self._refuted = max(self._refuted, target)
        return missed if status == SOLVED else target

    def _try(self, capacity: int, share: int) -> int:
        """Search with each order in turn, `share` nodes each. Returns the last status."""
        status = OUT_OF_NODES
        for part, same in zip(self._orders, self._same, strict=True):
            budget = min(share, self._nodes_left)
            status, offsets, nodes = self._engine.search(part.first, part.last, part.size, same, capacity, budget)
            self.nodes += nodes
            self._nodes_left -= nodes
            if status == SOLVED:
                order = np.searchsorted(self._part.numbers, part.numbers)
                self.offsets[order] = offsets
                self.height = int((self.offsets + self._part.size).max())
            if status != OUT_OF_NODES:
                break
        return status


def _orders(part: Part) -> list[Array]:
    """Return the orders in which ties are broken. Along time, where the next buffer is often beside the last, a packing is found
    without turning back for many problems; others are found by the most bytes alive (peak) first, then life, neighbours or area.
    """
    peak, width, size, area = -part.peak_bytes, -part.steps, -part.size, -part.steps * part.size
    begin, end, sections, overlaps = part.begin, -part.end, part.first - part.last, -part.overlaps
    keys = (
        (end, width, area),
        (begin, width, area),
        (end, size, peak),
        (begin, size, peak),
        (peak, width, area),
        (peak, overlaps, sections),
        (peak, begin, area),
        (peak, area, width),
    )
    return [np.lexsort(key[::-1]) for key in keys]
