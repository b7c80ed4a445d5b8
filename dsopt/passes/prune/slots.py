"""Channel slots: one for each index of a dimension, joined where the program needs them together.

A slot is a truth value, "this index is kept". Three facts are recorded about slots:

- two are equal (union-find: Tarjan 1975);
- one is pinned, that is, always kept, because an operator says so;
- one is the conjunction of two others: index (i, j) of a dimension that a reshape takes apart is kept if row i and column j are.

Whatever cannot be said exactly is said too strictly: a slot joined with one too many only makes fewer choices, never a wrong program.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import fx

Ids = NDArray[np.int32]
"""Slots, by number."""


@dataclass(frozen=True)
class Pin:
    """Why indices are kept: the operator that says so, and the reason in words.

    inner: the operator keeps an axis of its own, such as the window of a convolution, and no channels of the user's.
    """

    node: fx.Node | None
    why: str
    inner: bool = False


FIXED = 0
"""The slot of every index that is no channel: batch, time, space."""


class Slots:
    """A union-find over slots with pins and conjunctions."""

    def __init__(self) -> None:
        self._parent: Ids = np.zeros(1024, np.int32)
        self.count = 1
        self.pins: dict[int, Pin] = {FIXED: Pin(None, "no channel", inner=True)}
        """Root -> why it is kept. A conjunction has no pin of its own."""
        self.parts: dict[int, tuple[int, int]] = {}
        """Root of a conjunction -> its two parts."""

    def new(self, count: int) -> Ids:
        """Return `count` slots of which nothing is known."""
        first, self.count = self.count, self.count + count
        while self.count > len(self._parent):
            self._parent = np.concatenate([self._parent, np.zeros_like(self._parent)])
        ids = np.arange(first, self.count, dtype=np.int32)
        self._parent[first : self.count] = ids
        return ids

    def find(self, ids: Ids) -> Ids:
        """Return the root of each slot."""
        roots = self._parent[ids]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parent[ids] = roots
        return roots

    def root(self, slot: int) -> int:
        """Return the root of one slot."""
        above = int(self._parent[slot])
        while above != slot:
            slot, above = above, int(self._parent[above])
        return slot

    def unify(self, left: Ids, right: Ids, pin: Pin) -> None:
        """Let each slot of `left` equal the one of `right` in the same place; `pin` is the reason if one of them is pinned."""
        a, b = self.find(left), self.find(right)
        differ = a != b
        if not differ.any():
            return
        for one, other in np.unique(np.stack([a[differ], b[differ]], axis=1), axis=0).tolist():
            self._join(one, other, pin)

    def pin(self, ids: Ids, pin: Pin) -> None:
        """Keep slots, and the parts of those that are conjunctions."""
        for root in np.unique(self.find(ids)).tolist():
            for leaf in self.leaves(root):
                self.pins.setdefault(leaf, pin)

    def is_pinned(self, ids: Ids) -> NDArray[np.bool_]:
        """Tell of each slot whether it is always kept."""
        roots, places = np.unique(self.find(ids), return_inverse=True)
        found = np.array([all(leaf in self.pins for leaf in self.leaves(root)) for root in roots.tolist()], np.bool_)
        return found[places.reshape(ids.shape)]

    def leaves(self, slot: int) -> tuple[int, ...]:
        """Return the roots of the slots that a slot is the conjunction of, pinned ones too; itself if it is none."""
        found: dict[int, None] = {}
        pending = [self.root(slot)]
        while pending:
            root = pending.pop()
            parts = self.parts.get(root)
            if parts is None:
                found[root] = None
            else:
                pending += [self.root(part) for part in reversed(parts)]
        return tuple(found)

    def define(self, ids: Ids, first: Ids, second: Ids, pin: Pin) -> None:
        """Let each slot be the conjunction of the two in the same place of `first` and `second`."""
        for slot, one, other in zip(ids.tolist(), first.tolist(), second.tolist(), strict=True):
            fresh = int(self.new(1)[0])
            self.parts[fresh] = (one, other)
            self._join(slot, fresh, pin)

    def conjunction(self, first: Ids, second: Ids) -> Ids:
        """Return slots that are kept if those of `first` and of `second` in the same place are."""
        a, b = self.find(first), self.find(second)
        result = np.where(a == b, a, FIXED).astype(np.int32)
        pinned_a, pinned_b = self.is_pinned(a), self.is_pinned(b)
        result = np.where(pinned_a, b, np.where(pinned_b, a, result)).astype(np.int32)
        rest = np.flatnonzero((a != b) & ~pinned_a & ~pinned_b)
        fresh = self.new(len(rest))
        self.parts.update(zip(fresh.tolist(), zip(a[rest].tolist(), b[rest].tolist(), strict=True), strict=True))
        result[rest] = fresh
        return result

    def _join(self, left: int, right: int, pin: Pin) -> None:
        pending = [(left, right)]
        while pending:
            a, b = (self.root(slot) for slot in pending.pop())
            if a == b:
                continue
            if FIXED in (a, b):
                self.pin(np.array([a if b == FIXED else b], np.int32), pin)
                continue
            parts_a, parts_b = self.parts.get(a), self.parts.get(b)
            if parts_a is not None and parts_b is not None:
                del self.parts[b]
                self._parent[b] = a
                pending += zip(parts_a, parts_b, strict=True)
            elif parts_a is None and parts_b is None:
                self._merge_leaves(a, b, pin)
            else:
                leaf, whole = (a, b) if parts_a is None else (b, a)
                pending += self._bind(leaf, whole)

    def _merge_leaves(self, a: int, b: int, pin: Pin) -> None:
        self._parent[b] = a
        known = self.pins.pop(b, None)
        if known is not None:
            self.pins.setdefault(a, Pin(pin.node, f"{pin.why}, {known.why}") if known.inner else known)

    def _bind(self, leaf: int, whole: int) -> list[tuple[int, int]]:
        """Let a leaf be a conjunction. One that contains the leaf itself can only be if all its parts are equal."""
        inside = self.leaves(whole)
        if leaf in inside:
            del self.parts[whole]
            return [(leaf, other) for other in (*inside, whole)]
        self._parent[leaf] = whole
        known = self.pins.pop(leaf, None)
        if known is not None:
            self.pin(np.array([whole], np.int32), known)
        return []
