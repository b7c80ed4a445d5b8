"""Weights of integer layers as kernels read them: int8, or two values of 4 bits in a byte, with a factor for each group of inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from dsopt.backends.tir.builder import KernelBuilder
from dsopt.backends.tir.ops.integer_values import cast, need_integers, sum_dtype
from dsopt.backends.tir.program import Buffer
from dsopt.backends.tir.registry import RefusedError
from dsopt.backends.tir.tvm_adapter import Expr, TirBuffer, constant, element, tirx


@dataclass(frozen=True)
class StoredWeight:
    """A weight (N, K, ...) as `dsopt.ops.integer` stores it. factors: (N, ceil(K / group)) uint8, or None."""

    buffer: Buffer
    shape: tuple[int, ...]
    bits: int
    factors: Buffer | None = None
    group: int = 0

    @staticmethod
    def of(
        buffer: Buffer, shape: Sequence[int], bits: int, factors: Buffer | None = None, group: int = 0
    ) -> StoredWeight:
        """Check the arguments of an operator. Raises RefusedError for a width that has no form."""
        need_integers(buffer, factors)
        if bits not in (4, 8):
            raise RefusedError(f"weights of {bits} bits", "use 4 or 8 bits")
        return StoredWeight(buffer, tuple(shape), bits, factors, group)

    @property
    def reach(self) -> int:
        """Return the largest magnitude of a stored value, without its factor."""
        return 8 if self.bits == 4 else 128


class WeightReader:
    """A stored weight as a parameter of one kernel."""

    def __init__(self, k: KernelBuilder, weight: StoredWeight, name: str = "weight") -> None:
        self.k, self.weight = k, weight
        rows, *inner = weight.shape
        self._inner = tuple(inner)
        packed = (rows, (math.prod(inner) + 1) // 2)
        self._values = k.read(name, weight.buffer, packed if weight.bits == 4 else weight.shape)
        self._factors = k.read("factors", weight.factors) if weight.factors else None

    def value(self, row: Expr, *inner: Expr) -> Expr:
        """Return a value as int32, without its factor."""
        if self.weight.bits == 8:
            return tirx.Cast("int32", element(self._values, row, *inner))
        place: Expr = constant(0, "int32")
        for size, index in zip(self._inner, inner, strict=True):
            place = place * size + index
        place = self.k.let("place", place)
        byte = tirx.Cast("int32", element(self._values, row, tirx.truncdiv(place, 2)))
        half = tirx.bitwise_and(tirx.shift_right(byte, tirx.truncmod(place, 2) * 4), 15)
        return tirx.bitwise_xor(half, 8) - 8  # 0..7 stay, 8..15 stand for -8..-1

    def scaled(self, row: Expr, *inner: Expr) -> Expr:
        """Return a value times the factor of its group, as int32."""
        value = self.value(row, *inner)
        if self._factors is None:
            return value
        return value * self._factor(row, tirx.truncdiv(inner[0] + constant(0, "int32"), self.weight.group))

    def _factor(self, row: Expr, group: Expr) -> Expr:
        assert self._factors is not None
        return tirx.Cast("int32", self._factors[row, group])

    @contextmanager
    def groups(self, row: Expr, total: TirBuffer, largest: int) -> Iterator[tuple[TirBuffer, Expr, Expr]]:
        """Yield (sum, first, end): the products of inputs first..end-1 belong into `sum`.

        Without factors this is `total` and all inputs; with them the sum of each group, which a loop then multiplies by its factor
        and adds to `total`. largest: what the products of one input with the row may add up to.
        """
        k, K, group = self.k, self.weight.shape[1], self.weight.group
        if self._factors is None:
            yield total, 0, K
            return
        group = min(group, K)
        with ExitStack() as loops:
            number = loops.enter_context(k.loop("group", 0, -(-K // group))) if group < K else 0
            part = k.local("part", 0, sum_dtype(largest * group))
            first = k.let("first_input", number * group)
            yield part, first, tirx.min(first + group, K) if K % group else first + group
            wider = "int64" if "int64" in (str(part.dtype), str(total.dtype)) else "int32"
            product = cast(part[0], wider) * cast(self._factor(row, number), wider)
            k.store(total, total[0] + cast(product, str(total.dtype)))
