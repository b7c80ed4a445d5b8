"""The searches of packing.c and greedy.c in Python, step by step: for machines without a C compiler, and the oracle of the C code.

Both give the same offsets and count the same nodes. The comments on why each step is right are in packing.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

EXHAUSTED, SOLVED, OUT_OF_NODES = 0, 1, 2
ROUNDS = 2
MOST_ITEMS = 1 << 21
_NONE = (1 << 63) - 1


class _Item:
    """A buffer without a place, as in packing.c."""

    __slots__ = ("floor", "head", "index", "is_barred", "is_forced", "low", "part")

    def __init__(self, index: int, floor: int = 0, low: int = 0, is_barred: bool = False) -> None:
        self.index, self.floor, self.low, self.is_barred = index, floor, low, is_barred
        self.head, self.is_forced, self.part = _NONE, False, 0

    def copied(self) -> _Item:
        """Return another of the same place; what propagation sets is set anew."""
        return _Item(self.index, self.floor, self.low, self.is_barred)


@dataclass
class _Frame:
    """A node: with one part, item `chosen` is tried on its floor and then barred; with several, part after part is solved."""

    items: list[_Item]
    end: int
    parts: int
    chosen: int
    stage: int = 0


class _Section:
    """Of the items in a section: the two lowest `low` and ends, and the sum of sizes."""

    __slots__ = ("low", "low_index", "second_low", "second_top", "top", "top_index", "total")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget the items."""
        self.low = self.second_low = self.top = self.second_top = _NONE
        self.low_index = self.top_index = -1
        self.total = 0


class PythonEngine:
    """What packing.py asks of an engine, without a compiler."""

    name = "python"

    def search(
        self,
        first: Sequence[int],
        last: Sequence[int],
        size: Sequence[int],
        same: Sequence[int],
        capacity: int,
        budget: int,
    ) -> tuple[int, list[int], int]:
        """Return the status, the offsets if it is SOLVED, and the number of nodes."""
        first, last, size, same = (list(map(int, values)) for values in (first, last, size, same))
        return _Search(first, last, size, same, capacity, budget).run()

    def fit(
        self,
        first: Sequence[int],
        last: Sequence[int],
        size: Sequence[int],
        by_first: Sequence[int],
        pairs: int,
        orders: Sequence[Sequence[int]],
        enough: int,
    ) -> tuple[list[int], int]:
        """Return the best offsets over the orders, into first and into smallest gaps, and where they end."""
        first, last, size, by_first = (list(map(int, values)) for values in (first, last, size, by_first))
        near = _neighbours(first, last, by_first)
        best: list[int] = []
        height = _NONE
        for order in (list(map(int, order)) for order in orders):
            for is_best_fit in (False, True):
                if height <= enough:
                    return best, height
                offsets, top = _fit(order, size, near, is_best_fit, height)
                if top < height:
                    best, height = offsets, top
        return best, height


def _neighbours(first: Sequence[int], last: Sequence[int], by_first: Sequence[int]) -> list[list[int]]:
    near: list[list[int]] = [[] for _ in first]
    alive: list[int] = []
    for b in by_first:
        alive = [a for a in alive if last[a] > first[b]]
        for a in alive:
            near[a].append(b)
        near[b] += alive
        alive.append(b)
    return near


def _fit(
    order: Sequence[int], size: Sequence[int], near: Sequence[Sequence[int]], is_best_fit: bool, height: int
) -> tuple[list[int], int]:
    offsets = [-1] * len(size)
    top = 0
    for b in order:
        spans = sorted((offsets[a], offsets[a] + size[a]) for a in near[b] if offsets[a] >= 0)
        offsets[b] = _gap(spans, size[b], is_best_fit)
        top = max(top, offsets[b] + size[b])
        if top >= height:
            break
    return offsets, top


def _gap(spans: Sequence[tuple[int, int]], size: int, is_best_fit: bool) -> int:
    top, found, smallest = 0, -1, _NONE
    for start, end in spans:
        if size <= start - top < smallest:
            found, smallest = top, start - top
            if not is_best_fit:
                return found
        top = max(top, end)
    return top if found < 0 else found


class _Search:
    """One search, as in packing.c."""

    def __init__(
        self,
        first: Sequence[int],
        last: Sequence[int],
        size: Sequence[int],
        same: Sequence[int],
        capacity: int,
        budget: int,
    ) -> None:
        self.first, self.last, self.size, self.same = first, last, size, same
        self.capacity, self.budget = capacity, budget
        self.offsets = [0] * len(size)
        self._sections = [_Section() for _ in range(max(last))]

    def run(self) -> tuple[int, list[int], int]:
        """Go through the nodes depth first."""
        frames: list[_Frame] = []
        items = [_Item(index) for index in range(len(self.size))]
        begin = nodes = 0
        while True:
            is_done = self._open(items, begin, frames)
            items = []
            while not items:
                if not frames:
                    return (SOLVED if is_done else EXHAUSTED), self.offsets, nodes
                frame = frames[-1]
                if (frame.parts > 1) != is_done or (not is_done and (frame.stage == 2 or frame.chosen < 0)):
                    frames.pop()
                    continue
                if (not is_done and nodes == self.budget) or frame.end + len(frame.items) > MOST_ITEMS:
                    return OUT_OF_NODES, self.offsets, nodes
                begin = frame.end
                if is_done:
                    items = [item.copied() for item in frame.items if item.part == frame.stage]
                    frame.stage += 1
                    if not items:
                        frames.pop()
                else:
                    items = self._child(frame)
                    nodes += 1

    def _open(self, items: list[_Item], begin: int, frames: list[_Frame]) -> bool:
        """Open a node for the items, unless they have no packing; return whether nothing is left to place."""
        left = self._propagate(items)
        if not left:
            return left is not None
        parts = self._number_parts(left)
        frames.append(_Frame(left, begin + len(left), parts, -1 if parts > 1 else self._pick(left)))
        return parts > 1

    def _child(self, frame: _Frame) -> list[_Item]:
        items = [item.copied() for item in frame.items]
        if frame.stage == 0:
            self._place(items.pop(frame.chosen), items)
        else:
            items[frame.chosen].is_barred = True
        frame.stage += 1
        return items

    def _place(self, placed: _Item, items: list[_Item]) -> None:
        """Put a buffer on its floor: whatever it meets lies above it."""
        a = placed.index
        top = placed.floor + self.size[a]
        self.offsets[a] = placed.floor
        for item in items:
            b = item.index
            if item.floor < top and b != a and self.first[b] < self.last[a] and self.first[a] < self.last[b]:
                item.floor, item.is_barred, item.low = top, False, max(item.low, top)

    def _propagate(self, items: list[_Item]) -> list[_Item] | None:
        """Return the items that are left, sorted; None if there is no packing."""
        has_forced = True
        while has_forced and items:
            has_forced, has_changed = False, True
            for _ in range(ROUNDS):
                changed = self._tighten(items)
                if changed is None:
                    return None
                has_forced = any(item.is_forced for item in items)
                has_changed = changed
                if not has_changed or has_forced:
                    break
            if has_forced:
                for item in items:
                    if item.is_forced:
                        self._place(item, items)
                items = [item for item in items if not item.is_forced]
        items.sort(key=lambda item: (item.low, item.index))
        return items if self._sections_fit(items) else None

    def _tighten(self, items: list[_Item]) -> bool | None:
        """Raise what must lie higher, and mark what may be placed at once. Returns whether anything rose, None if nothing fits."""
        self._fill_sections(items)
        has_changed = False
        for item in items:
            b, item_low = item.index, item.low
            others_low = head = _NONE
            raised = item_low
            for section in self._sections[self.first[b] : self.last[b]]:
                low = section.second_low if section.low_index == b else section.low
                top = section.second_top if section.top_index == b else section.top
                others_low = low if low < others_low else others_low  # min() takes three times as long
                head = top if top < head else head
                if top > raised and item_low + section.total > self.capacity:
                    raised = top
            fits_below_all = item.floor + self.size[b] <= others_low
            if item.is_barred or item_low > item.floor:
                if fits_below_all:
                    return None
                raised = max(raised, head)
            item.is_forced, item.head = fits_below_all, head
            if raised > self.capacity - self.size[b]:
                return None
            has_changed |= raised != item_low
            item.low = raised
        return has_changed

    def _fill_sections(self, items: list[_Item]) -> None:
        for section in self._sections:
            section.clear()
        for item in items:
            b, low = item.index, item.low
            size = self.size[b]
            top = low + size
            for section in self._sections[self.first[b] : self.last[b]]:
                section.total += size
                if low < section.low:
                    section.second_low, section.low, section.low_index = section.low, low, b
                elif low < section.second_low:
                    section.second_low = low
                if top < section.top:
                    section.second_top, section.top, section.top_index = section.top, top, b
                elif top < section.second_top:
                    section.second_top = top

    def _sections_fit(self, items: list[_Item]) -> bool:
        """Stack the items of each section in order of `low`: the least end that they can have."""
        full = [0] * len(self._sections)
        for item in items:
            low, size = item.low, self.size[item.index]
            most = self.capacity - size
            for t in range(self.first[item.index], self.last[item.index]):
                start = full[t] if full[t] > low else low
                if start > most:
                    return False
                full[t] = start + size
        return True

    def _number_parts(self, items: list[_Item]) -> int:
        """Number the parts that no item crosses the border of, in order of time. Returns how many there are."""
        end, part = -1, -1
        for item in sorted(items, key=lambda item: self.first[item.index]):
            if self.first[item.index] >= end:
                part += 1
            end = max(end, self.last[item.index])
            item.part = part
        return part + 1

    def _pick(self, items: list[_Item]) -> int:
        """Choose the lowest item that can lie on its floor and below which nothing else fits; -1 if there is none."""
        present = {item.index for item in items}
        for place, item in enumerate(items):
            if not item.is_barred and item.low == item.floor < item.head and self.same[item.index] not in present:
                return place
        return -1
