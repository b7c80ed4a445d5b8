"""Packings at once: what an allocator would do over time, and fits of the buffers in several orders."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING, Any

import numpy as np

from dsopt.passes.memory.sections import Part

if TYPE_CHECKING:
    from dsopt.passes.memory.packing import Engine

Array = np.ndarray[Any, Any]


def pack_greedily(part: Part, enough: int, effort: int, engine: Engine) -> tuple[Array, int]:
    """Return offsets and the end of the highest buffer: of several tries the lowest, or the first that ends at `enough` or below.

    effort: how many pairs of buffers that are alive together may be looked at, over all tries.
    """
    best, height = allocate_in_time(part.first, part.last, part.size)
    if height > enough:
        mirrored = part.section_count - part.last, part.section_count - part.first
        offsets, top = allocate_in_time(*mirrored, part.size)
        if top < height:
            best, height = offsets, top
    orders = _orders(part)[: int(effort // (4 * max(part.pairs, 1)))]
    if height > enough and orders:
        by_first = np.argsort(part.first, kind="stable")
        offsets, top = engine.fit(part.first, part.last, part.size, by_first, part.pairs, orders, enough)
        if top < height:
            best, height = np.asarray(offsets, np.int64), top
    return best, height


def _orders(part: Part) -> list[Array]:
    """Return orders in which to place: the large, those that take much room in space and time, the long-lived, as time goes."""
    large, long, first = -part.size, -part.steps, part.first
    area, peak = large * part.steps, -part.peak_bytes
    keys = (
        (large, long, first),
        (peak, area, long),
        (area, first),
        (peak, long, area),
        (long, large, first),
        (first, large),
        (-part.last, large),
    )
    return [np.lexsort(key[::-1]) for key in keys]


def allocate_in_time(first: Array, last: Array, size: Array) -> tuple[Array, int]:
    """Give each buffer the smallest free block when its life begins, and free it when it ends. O(n log n).

    first, last, size: as in `Part`. Returns offsets and the end of the highest. Best fit with coalescing, as in Knuth, The Art of
    Computer Programming 1, 2.5; of buffers that begin together the largest is placed first.
    """
    heap = _Heap()
    offsets = np.zeros(len(size), np.int64)
    sizes, placed = size.tolist(), [0] * len(size)
    begins, ends = first.tolist(), last.tolist()
    leaving = np.argsort(last, kind="stable").tolist()
    gone = 0
    for b in np.lexsort([-size, first]).tolist():
        while ends[leaving[gone]] <= begins[b]:
            heap.free(placed[leaving[gone]], sizes[leaving[gone]])
            gone += 1
        placed[b] = heap.allocate(sizes[b])
    offsets[:] = placed
    return offsets, heap.height


class _Heap:
    """Free blocks below `top`, sorted by size, and found by start and by end; `height` is the highest that `top` ever was."""

    def __init__(self) -> None:
        self.top = self.height = 0
        self._blocks: list[tuple[int, int]] = []
        self._end: dict[int, int] = {}
        self._start: dict[int, int] = {}

    def allocate(self, size: int) -> int:
        """Return the start of a block of `size` bytes."""
        place = bisect_left(self._blocks, (size, 0))
        if place == len(self._blocks):
            start = self.top
            self.top += size
            self.height = max(self.height, self.top)
            return start
        found, start = self._blocks[place]
        self._remove(start)
        if found > size:
            self._add(start + size, start + found)
        return start

    def free(self, start: int, size: int) -> None:
        """Take a block back, joined with the free ones beside it."""
        end = start + size
        if start in self._start:
            start = self._remove(self._start[start])
        if end in self._end:
            following = end
            end = self._end[following]
            self._remove(following)
        if end == self.top:
            self.top = start
        else:
            self._add(start, end)

    def _add(self, start: int, end: int) -> None:
        insort(self._blocks, (end - start, start))
        self._end[start], self._start[end] = end, start

    def _remove(self, start: int) -> int:
        end = self._end.pop(start)
        del self._start[end]
        del self._blocks[bisect_left(self._blocks, (end - start, start))]
        return start
