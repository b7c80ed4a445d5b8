"""Time cut into sections, and buffers into parts that share no time: what packing works on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Part:
    """Buffers that are alive together with each other only. Arrays have one element a buffer.

    numbers: which buffers they are.  first, last: each lives in sections first to last - 1 of `section_count`, and from the step
    `begin` to the step `end` - 1 (float64, since any steps are allowed).
    """

    numbers: Array
    first: Array
    last: Array
    size: Array
    begin: Array
    end: Array
    section_count: int

    @cached_property
    def steps(self) -> Array:
        """Return how many steps each buffer lives."""
        return self.end - self.begin

    @cached_property
    def live_bytes(self) -> Array:
        """Return the sum of sizes alive in each section."""
        changes = np.zeros(self.section_count + 1, np.int64)
        np.add.at(changes, self.first, self.size)
        np.subtract.at(changes, self.last, self.size)
        return np.cumsum(changes)[:-1]

    @cached_property
    def bound(self) -> int:
        """Return the largest sum of sizes alive at once."""
        return int(self.live_bytes.max())

    @cached_property
    def peak_bytes(self) -> Array:
        """Return, for each buffer, the largest sum of sizes alive at once during its life."""
        padded = np.append(self.live_bytes, 0)
        return np.maximum.reduceat(padded, np.stack([self.first, self.last], 1).ravel())[::2]

    @cached_property
    def overlaps(self) -> Array:
        """Return how many others each buffer is alive with."""
        begun = np.searchsorted(np.sort(self.first), self.last, "left")
        ended = np.searchsorted(np.sort(self.last), self.first, "right")
        return begun - ended - 1

    @property
    def pairs(self) -> int:
        """Return how many pairs of buffers are alive together."""
        return int(self.overlaps.sum()) // 2

    @property
    def same(self) -> Array:
        """Return, for each buffer, the number of the last one before it with equal life and size, or -1."""
        order = np.lexsort([np.arange(len(self.size)), self.size, self.last, self.first])
        keys = np.stack([self.first, self.last, self.size])[:, order]
        equal = (keys[:, 1:] == keys[:, :-1]).all(0)
        found = np.full(len(self.size), -1, np.int64)
        found[order[1:][equal]] = order[:-1][equal]
        return found

    def reordered(self, order: Array) -> Part:
        """Return the part with its buffers in another order."""
        return Part(
            self.numbers[order], self.first[order], self.last[order], self.size[order], self.begin[order], self.end[order],
            self.section_count,
        )  # fmt: skip


def split(first: Array, end: Array, size: Array) -> list[Part]:
    """Cut buffers that live during steps first to end - 1 into parts, in order of time. Arrays of int64, one element a buffer."""
    if not len(size):
        return []
    begin, finish, count = _sections(first, end)
    crossing = np.zeros(count + 1, np.int64)  # how many live both in section s - 1 and in s
    np.add.at(crossing, begin + 1, 1)
    np.subtract.at(crossing, finish, 1)
    cuts = np.flatnonzero(np.cumsum(crossing)[:-1] == 0)  # the first sections of the parts
    part = np.searchsorted(cuts, begin, "right") - 1
    order = np.argsort(part, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(part[order])) + 1)
    ends = np.append(cuts[1:], count)
    return [
        Part(
            group, begin[group] - cuts[n], finish[group] - cuts[n], size[group],
            first[group].astype(np.float64), end[group].astype(np.float64), int(ends[n] - cuts[n]),
        )
        for n, group in enumerate(groups)
    ]  # fmt: skip


def _sections(first: Array, end: Array) -> tuple[Array, Array, int]:
    """Return the first section of each buffer, the one after its last, and their number.

    Of the steps at which buffers begin, those make a section after which a buffer ends before the next one begins: there the set
    of buffers alive is largest.
    """
    begins, ends = np.unique(first), np.unique(end)
    following = np.append(begins[1:], np.iinfo(np.int64).max)
    kept = begins[np.searchsorted(ends, begins, "right") < np.searchsorted(ends, following, "right")]
    return np.searchsorted(kept, first, "left"), np.searchsorted(kept, end, "left"), len(kept)
