"""Offsets where some pairs may share bytes: first fit in a given order, and branch and bound over canonical orders.

**Canonical order.** Of the smallest packings, one has the least sum of offsets. In it every buffer lies at 0 or where the space that
another one forbids it ends; sorted by offset, the buffers that hold one up come before it. So packings are built in order of offset,
each buffer at such an end: the lowest that is free, or any, if a buffer with which it may share bytes is still to come.

**What is cut.** Where a result and its operand are too large to lie apart, one lies over the other: along a chain of them each starts
ahead of the next, which leaves each a window to start in. A packing in which a buffer could move down (one still to come fits wholly
below the next offset); equal offsets in more than one sequence; and, at each step, what is still to come stacked in order of its least
offset, less what overlays save.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from dsopt.passes.memory.liveness import Lifetime

if TYPE_CHECKING:
    from dsopt.passes.memory.overlay import Overlay

_Spans = tuple[tuple[int, int], ...]
"""Open intervals in which a buffer may not start."""

_Way = tuple[tuple[int, int, int], ...]
"""How two buffers may lie: each (low, high, lead) says that `high` starts at least `lead` above the start of `low`."""

_ROUNDS = 50


class Conflicts:
    """Buffers by number, in units of the alignment: which are alive together, and where each may start beside another."""

    def __init__(
        self,
        buffers: Sequence[Lifetime],
        pairs: Mapping[tuple[str, str], Overlay],
        saved: Mapping[int, int],
        alignment: int,
    ) -> None:
        """saved: the most units that overlays save at each step at which they could."""
        self.buffers, self.saved = buffers, saved
        self.size = [-(-life.size_bytes // alignment) for life in buffers]
        number = {life.name: n for n, life in enumerate(buffers)}
        self._lead: dict[tuple[int, int], tuple[int, bool]] = {
            (number[o], number[i]): (-(-each.shift // alignment), each.exact) for (o, i), each in pairs.items()
        }
        self.partners: list[list[int]] = [[] for _ in buffers]
        for one, other in sorted(self._lead):
            self.partners[one].append(other)
            self.partners[other].append(one)
        self.near: list[list[int]] = [[] for _ in buffers]
        alive: list[int] = []
        for n in sorted(range(len(buffers)), key=lambda n: (buffers[n].first, n)):
            alive = [other for other in alive if buffers[other].last >= buffers[n].first]
            for other in alive:
                self.near[n].append(other)
                self.near[other].append(n)
            alive.append(n)
        self._apart = [
            [(other, self.size[other]) for other in near if other not in self.partners[n]]
            for n, near in enumerate(self.near)
        ]
        found = (self._ways_of(n, other) for n, near in enumerate(self.near) for other in near if n < other)
        self._ways = [ways for ways in found if ways]
        self._free_from = [sorted(map(self._height_of, ways))[1] for ways in self._ways]
        self._ways_with: list[list[int]] = [[] for _ in buffers]
        for way, ways in enumerate(self._ways):
            for each in ways[0][0][:2]:
                self._ways_with[each].append(way)
        firsts = sorted({life.first for life in buffers})
        self.alive_at = [
            (step, frozenset(n for n, life in enumerate(buffers) if life.first <= step <= life.last)) for step in firsts
        ]
        self.live_units = [sum(self.size[n] for n in alive) for _, alive in self.alive_at]

    def windows(self, height: int) -> tuple[list[int], list[int]] | None:
        """Return the lowest and highest start of each buffer in any packing that ends at or below `height`; None if there is none.

        Two buffers lie in one of a few ways, such as one above the other. Where the windows leave only one way, it narrows them:
        constraint propagation as in disjunctive scheduling. Fewer rounds than it takes leave the windows wider.
        """
        least, most = [0] * len(self.size), [height - size for size in self.size]
        # In turn, only pairs that are not free at first, and those of which a window became narrower: the rest would change nothing.
        turn = [number for number, free_from in enumerate(self._free_from) if free_from > height]
        for _ in range(_ROUNDS):
            later: set[int] = set()
            coming = set(turn)
            while turn:
                number = heappop(turn)
                ways = self._ways[number]
                possible = [way for way in ways if all(least[low] + lead <= most[high] for low, high, lead in way)]
                if not possible:
                    return None
                if len(possible) > 1:
                    continue
                narrower = []
                for low, high, lead in possible[0]:
                    if least[low] + lead > least[high]:
                        least[high] = least[low] + lead
                        narrower.append(high)
                    if most[high] - lead < most[low]:
                        most[low] = most[high] - lead
                        narrower.append(low)
                for other in (way for each in narrower for way in self._ways_with[each]):
                    if other <= number:
                        later.add(other)
                    elif other not in coming:
                        coming.add(other)
                        heappush(turn, other)
            turn = sorted(later)
            if not turn:
                break
        return (least, most) if all(low <= high for low, high in zip(least, most, strict=True)) else None

    def _ways_of(self, one: int, other: int) -> tuple[_Way, ...]:
        """Return how two buffers that are alive together may lie; nothing where they may lie anyhow."""
        pairs = [pair for pair in ((one, other), (other, one)) if pair in self._lead]
        if len(pairs) == 2:
            return ()
        apart = (((one, other, self.size[one]),), ((other, one, self.size[other]),))
        if not pairs:
            return apart
        output, operand = pairs[0]
        lead, is_exact = self._lead[pairs[0]]
        if is_exact:
            return (*apart, ((output, operand, 0), (operand, output, 0)))
        return (
            ((output, operand, min(lead, self.size[output])),),
            ((operand, output, self.size[operand]),),
        )

    def _height_of(self, way: _Way) -> int:
        """Return the least height at which two buffers may lie in a way, with nothing else placed."""
        return max(lead + self.size[high] for _, high, lead in way)

    def forbidden(self, number: int, other: int, at: int) -> _Spans:
        """Return where a buffer may not start because another, alive with it, starts at `at`."""
        low, high = at - self.size[number], at + self.size[other]
        over, under = self._lead.get((number, other)), self._lead.get((other, number))
        if over is None and under is None:
            return ((low, high),)
        allowed = ((low, at), (at, high))
        above = ((low, high),) if over is None else allowed if over[1] else ((max(low, at - over[0]), high),)
        below = ((low, high),) if under is None else allowed if under[1] else ((low, min(high, at + under[0])),)
        return tuple((max(a, c), min(b, d)) for a, b in above for c, d in below if max(a, c) < min(b, d))

    def first_fit(self, order: Sequence[int]) -> tuple[list[int], int]:
        """Give each buffer the lowest start that those placed before it leave. Returns starts and the end of the highest."""
        starts, rank = [0] * len(self.size), [0] * len(self.size)
        for place, number in enumerate(order):
            rank[number] = place
        for number in order:
            starts[number] = self._lowest_start(number, starts, rank)
        return starts, max(start + size for start, size in zip(starts, self.size, strict=True))

    def refit(self, order: Sequence[int], starts: Sequence[int], here: int, there: int, limit: int) -> list[int] | None:
        """Return what `first_fit` gives for an order, from the starts of one in which the buffer now at `there` was at `here`.

        None if a buffer ends above `limit`, at or below which the order before it ends. Only those are fitted again before which something
        has changed.
        """
        chosen, (first, last) = order[there], sorted((here, there))
        fitted, rank = list(starts), [0] * len(starts)
        for place, number in enumerate(order):
            rank[number] = place
        coming, queued = [there], bytearray(len(starts))
        queued[chosen] = 1

        def changes(number: int, was: int | None, now: int | None, after: int, until: int) -> None:
            """Queue the neighbours between two places of the order whose lowest start may be another if one is at `now`, not at `was`."""
            end = -1 if now is None else now + self.size[number]
            for other in self.near[number]:
                if after < rank[other] <= until and not queued[other]:
                    start = starts[other]
                    top = start + self.size[other]
                    frees = was is not None and was < top and start > 0
                    hits = now is not None and now < top and start < end
                    if frees or hits or other in self.partners[number]:
                        queued[other] = 1
                        heappush(coming, rank[other])

        if here < there:
            changes(chosen, starts[chosen], None, first - 1, last)
        while coming:
            place = heappop(coming)
            number = order[place]
            start = self._lowest_start(number, fitted, rank)
            if start + self.size[number] > limit:
                return None
            fitted[number] = start
            if number == chosen and there < here:
                changes(number, None, start, place, last)
                place = last
            if start != starts[number]:
                changes(number, starts[number], start, place, len(order))
        return fitted

    def _lowest_start(self, number: int, starts: Sequence[int], rank: Sequence[int]) -> int:
        """Return the lowest start that those leave which come before it. rank: the place of each in the order."""
        size, place = self.size[number], rank[number]
        spans = [
            (at - size, at + above)
            for other, above in self._apart[number]
            if rank[other] < place
            for at in (starts[other],)
        ]
        for other in self.partners[number]:
            if rank[other] < place:
                spans += self.forbidden(number, other, starts[other])
        spans.sort()
        start = 0
        for low, high in spans:
            if low < start < high:
                start = high
            elif low >= start:
                break
        return start


def lowest(spans: Sequence[tuple[int, int]], start: int) -> int:
    """Return the lowest start at or above `start` that is in none of the open intervals."""
    for low, high in sorted(spans):
        if low < start < high:
            start = high
    return start


@dataclass(frozen=True)
class Found:
    """The best starts, if any are better than was asked, where they end, and a height that none are below."""

    starts: list[int] | None
    height: int
    bound: int
    nodes: int


def search(conflicts: Conflicts, height: int, bound: int, nodes: int) -> Found:
    """Search for starts that end below `height`, none of which are below `bound`, with at most `nodes` buffers placed in all."""
    one = _Search(conflicts, height, bound, nodes)
    is_exhausted = one.run()
    return Found(one.best, one.height, one.height if is_exhausted else bound, one.nodes)


def raised(conflicts: Conflicts, low: int, high: int) -> int:
    """Return the lowest height from `low` to `high` that is not excluded before anything is placed, by halving."""
    while low < high:
        middle = (low + high) // 2
        windows = conflicts.windows(middle)
        if windows is not None and _Search(conflicts, middle + 1, 0, 0).fits(dict(enumerate(windows[0]))):
            high = middle
        else:
            low = middle + 1
    return low


@dataclass
class _Node:
    """What is still to come, with the intervals forbidden to each; the last start; and what is tried next, best last."""

    spans: dict[int, _Spans]
    last: int
    tries: list[tuple[int, int]]


class _Search:
    def __init__(self, conflicts: Conflicts, height: int, bound: int, budget: int) -> None:
        self._c, self.height, self._bound, self._budget = conflicts, height, bound, budget
        self.best: list[int] | None = None
        self.nodes = 0
        self._windows = conflicts.windows(height - 1)
        lives = conflicts.buffers
        weight = [size * (life.last - life.first + 1) for size, life in zip(conflicts.size, lives, strict=True)]
        order = sorted(range(len(lives)), key=lambda n: (-weight[n], -conflicts.size[n], n))
        self._rank = {number: rank for rank, number in enumerate(order)}

    def run(self) -> bool:
        """Go through the nodes depth first. Returns whether there is nothing better than what was found."""
        starts = [0] * len(self._c.size)
        root = _Node(dict.fromkeys(range(len(starts)), ()), 0, [])
        self._list_tries(root, -1)
        stack = [root]
        while stack:
            node = stack[-1]
            if self.height <= self._bound:
                return True
            if not node.tries:
                stack.pop()
                continue
            if self.nodes == self._budget:
                return False
            self.nodes += 1
            at, number = node.tries.pop()
            starts[number] = at
            spans = dict(node.spans)
            del spans[number]
            for other in self._c.near[number]:
                if other in spans:
                    spans[other] = (*spans[other], *self._c.forbidden(other, number, at))
            if not spans:
                top = max(start + size for start, size in zip(starts, self._c.size, strict=True))
                if top < self.height:
                    self.best, self.height = list(starts), top
                    self._windows = self._c.windows(top - 1)
                continue
            child = _Node(spans, at, [])
            self._list_tries(child, number)
            stack.append(child)
        return True

    def _list_tries(self, node: _Node, placed: int) -> None:
        """List which buffer may come next and where; nothing if no packing of the rest is better than the best."""
        size = self._c.size
        free = {number: lowest(spans, 0) for number, spans in node.spans.items()}
        if self._windows is None:
            return
        least, most = self._windows
        lows = {
            number: lowest(node.spans[number], max(start, node.last, least[number])) for number, start in free.items()
        }
        limit = min(start + size[number] for number, start in free.items())
        if any(low > most[number] for number, low in lows.items()) or not self.fits(lows):
            return
        for number, spans in node.spans.items():
            ends = {free[number]}
            if any(other in node.spans for other in self._c.partners[number]):
                ends |= {high for _, high in spans if lowest(spans, high) == high}
            for at in ends:
                if (
                    max(node.last, least[number]) <= at < limit
                    and at <= most[number]
                    and not self._came_before(node, placed, number, at)
                ):
                    node.tries.append((at, number))
        node.tries.sort(key=lambda each: (-each[0], -self._rank[each[1]]))

    def _came_before(self, node: _Node, placed: int, number: int, at: int) -> bool:
        """Return whether the buffer could have been placed there before the last one, which has the same start."""
        if placed < 0 or at > node.last or self._rank[number] > self._rank[placed]:
            return False
        if number not in self._c.near[placed]:
            return True
        return all(high != at for _, high in self._c.forbidden(number, placed, node.last))

    def fits(self, lows: dict[int, int]) -> bool:
        """Return whether, at each step, what is still to come ends below the best height if stacked in order of least start."""
        size = self._c.size
        order = sorted(lows, key=lambda number: lows[number])
        highest = max(lows.values())
        for (step, alive), units in zip(self._c.alive_at, self._c.live_units, strict=True):
            if highest + units < self.height:
                continue
            top = 0
            saved = 0
            for number in order:
                if number in alive:
                    top = max(top, lows[number]) + size[number]
            if top >= self.height and step in self._c.saved:
                saved = self._c.saved[step]
            if top - saved >= self.height:
                return False
        return True
