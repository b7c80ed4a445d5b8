"""Axis expressions: what the indices of a dimension are made of.

A dimension is a product of factors, the outermost first, as a row-major reshape makes it; a factor is a row of slots, one for each of
its indices, or fixed. Concatenation, slices and shuffles are exact because every index has a slot of its own; reshapes are, because a
product remembers its factors. A dimension of size 1 is the empty product.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from torch import SymInt

from dsopt.ir.torch_private import same_size
from dsopt.passes.prune.slots import FIXED, Ids, Pin, Slots

Length = int | SymInt


@dataclass(frozen=True, eq=False)
class Factor:
    """A row of `size` indices. slots: one for each; None where they are fixed, as those of a varying size always are."""

    size: Length
    slots: Ids | None = None


Expr = tuple[Factor, ...]
"""One dimension."""

Axes = tuple[Expr, ...]
"""The dimensions of one tensor."""


def same(left: Length, right: Length) -> bool:
    """Tell whether two lengths are equal whatever the varying sizes are."""
    return left == right if isinstance(left, int) and isinstance(right, int) else same_size(left, right)


def fixed(size: Length) -> Expr:
    """Return a dimension that holds no channels."""
    return () if isinstance(size, int) and size == 1 else (Factor(size),)


def length(expr: Iterable[Factor]) -> Length:
    """Return the number of indices of a dimension."""
    return prod(factor.size for factor in expr)


def is_fixed(expr: Expr) -> bool:
    """Tell whether a dimension holds no channels at all."""
    return all(factor.slots is None for factor in expr)


class Algebra:
    """Take dimensions apart, put them together and hold them equal."""

    def __init__(self) -> None:
        self.slots = Slots()

    def fresh(self, size: Length) -> Expr:
        """Return a dimension of which nothing is known."""
        if not isinstance(size, int):
            return fixed(size)
        return () if size == 1 else (Factor(size, self.slots.new(size)),)

    def pin(self, expr: Expr, pin: Pin) -> None:
        """Keep every index of a dimension."""
        for factor in expr:
            if factor.slots is not None:
                self.slots.pin(factor.slots, pin)

    def unify(self, left: Sequence[Factor], right: Sequence[Factor], pin: Pin) -> None:
        """Let two dimensions of one size be kept index by index alike."""
        a, b = deque(left), deque(right)
        while a and b:
            one, other = a.popleft(), b.popleft()
            if same(one.size, other.size):
                self._unify(one, other, pin)
            elif _divides(other.size, one.size):
                outer, inner = self.split(one, other.size, pin)
                self._unify(outer, other, pin)
                a.appendleft(inner)
            elif _divides(one.size, other.size):
                outer, inner = self.split(other, one.size, pin)
                self._unify(one, outer, pin)
                b.appendleft(inner)
            else:
                self._unify_rows((one, *a), (other, *b), pin)
                return
        for factor in (*a, *b):
            self.pin((factor,), pin)

    def _unify(self, one: Factor, other: Factor, pin: Pin) -> None:
        if one.slots is not None and other.slots is not None:
            self.slots.unify(one.slots, other.slots, pin)
        else:
            self.pin((one, other), pin)

    def _unify_rows(self, left: Expr, right: Expr, pin: Pin) -> None:
        if isinstance(length(left), int) and same(length(left), length(right)):
            self.slots.unify(self.row(left), self.row(right), pin)
        else:
            self.pin((*left, *right), pin)

    def split(self, factor: Factor, outer: Length, pin: Pin) -> tuple[Factor, Factor]:
        """Take a factor apart into `outer` rows of equal length: index (i, j) is kept if row i and column j are."""
        inner = factor.size // outer
        if factor.slots is None or not isinstance(outer, int):
            self.pin((factor,), pin)
            return Factor(outer), Factor(inner)
        roots = self.slots.find(factor.slots).reshape(outer, -1)
        if self.slots.is_pinned(roots).all():
            return Factor(outer), Factor(inner)
        if (roots == roots[:, :1]).all():
            return Factor(outer, roots[:, 0].copy()), Factor(inner)
        if (roots == roots[:1]).all():
            return Factor(outer), Factor(inner, roots[0].copy())
        known = self._known_split(roots)
        if known is not None:
            return known
        rows, columns = self.slots.new(outer), self.slots.new(roots.shape[1])
        self.slots.define(
            roots.reshape(-1), np.repeat(rows, len(columns)), np.tile(columns, len(rows)),
            Pin(pin.node, pin.why + ", together with indices that are kept"),
        )  # fmt: skip
        return Factor(outer, rows), Factor(inner, columns)

    def _known_split(self, roots: Ids) -> tuple[Factor, Factor] | None:
        """Return the rows and columns of indices that have been taken apart in this way before."""
        parts = [self.slots.parts.get(root) for root in roots.reshape(-1).tolist()]
        pairs = [part for part in parts if part is not None]
        if len(pairs) < len(parts):
            return None
        found = self.slots.find(np.array(pairs, np.int32)).reshape(*roots.shape, 2)
        rows, columns = found[:, 0, 0], found[0, :, 1]
        if (found[..., 0] != rows[:, None]).any() or (found[..., 1] != columns[None]).any():
            return None
        return Factor(len(rows), rows.copy()), Factor(len(columns), columns.copy())

    def regroup(self, factors: Sequence[Factor], sizes: Sequence[Length], pin: Pin) -> Axes | None:
        """Return the dimensions of `sizes` that a row-major reshape makes of factors; None where the two do not nest."""
        rest = deque(factors)
        result: list[Expr] = []
        for size in sizes:
            need, taken = size, list[Factor]()
            while not same(need, 1):
                if not rest:
                    return None
                factor = rest.popleft()
                if _divides(factor.size, need):
                    taken.append(factor)
                    need = need // factor.size
                elif _divides(need, factor.size):
                    outer, inner = self.split(factor, need, pin)
                    taken.append(outer)
                    rest.appendleft(inner)
                    need = 1
                else:
                    return None
            result.append(tuple(taken))
        return None if rest else tuple(result)

    def row(self, expr: Expr) -> Ids:
        """Return the slot of every index of a dimension of known size."""
        result = np.full(1, FIXED, np.int32)
        for factor in expr:
            assert isinstance(factor.size, int)
            slots = np.full(factor.size, FIXED, np.int32) if factor.slots is None else factor.slots
            outer, inner = np.repeat(result, len(slots)), np.tile(slots, len(result))
            result = self.slots.conjunction(outer, inner)
        return result

    def concat(self, parts: Sequence[Expr], pin: Pin) -> Expr:
        """Return the dimension of tensors that are joined along it, all of known size."""
        return self.from_row(np.concatenate([self.row(part) for part in parts]), pin)

    def take(self, expr: Expr, start: int, stop: int, pin: Pin) -> Expr:
        """Return the indices start..stop-1 of a dimension."""
        if start == 0 and same(stop, length(expr)):
            return expr
        inner = length(expr[1:])
        first = expr[0] if expr else Factor(1)
        if isinstance(inner, int) and isinstance(first.size, int) and start % inner == 0 and stop % inner == 0:
            low, high = start // inner, stop // inner
            slots = first.slots if first.slots is not None else np.full(first.size, FIXED, np.int32)
            return (*self.from_row(slots[low:high], pin), *expr[1:])
        return self.from_row(self.row(expr)[start:stop], pin)

    def from_row(self, slots: Ids, pin: Pin) -> Expr:
        """Return the dimension with these slots. A single one is kept: a dimension of size 1 may be broadcast."""
        if len(slots) == 1:
            self.slots.pin(slots, pin)
            return ()
        return (Factor(len(slots), None if (slots == FIXED).all() else slots),)


def _divides(part: Length, whole: Length) -> bool:
    """Tell whether `whole` is a multiple of `part` whatever the varying sizes are."""
    if isinstance(part, int) and isinstance(whole, int):
        return part > 0 and whole % part == 0
    rest: Length = whole % part  # type: ignore[operator]  # an int modulo a SymInt is a SymInt
    return same_size(rest, 0)
