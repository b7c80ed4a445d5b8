"""The loop form of `dsopt.ops.rounding`: high_product, shift_right and requantize as statements of a kernel.

Where the shifts are numbers, or weights that are known when the kernel is written, only what these shifts need is written: for
1 to 30, which trained layers have, one product in int64 and the rest in int32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dsopt.backends.tir.builder import KernelBuilder
from dsopt.backends.tir.ops.integer_values import cast, limited
from dsopt.backends.tir.program import Buffer
from dsopt.backends.tir.registry import Context, RefusedError
from dsopt.backends.tir.tvm_adapter import Expr, TirBuffer, constant, tirx
from dsopt.ops.rounding import ACCUMULATOR_LIMIT, MAX_SHIFT, MIN_SHIFT


def high_product(k: KernelBuilder, value: Expr, multiplier: Expr | int, dtype: str) -> Expr:
    """Name value * multiplier / 2^31, ties upwards, as `dtype`; the product must fit int64."""
    factor = constant(multiplier, "int64") if isinstance(multiplier, int) else cast(multiplier, "int64")
    product = k.let("product", cast(value, "int64") * factor, "int64")
    return k.let("high", cast(tirx.shift_right(product + constant(1 << 30, "int64"), 31), dtype), dtype)


def shift_right(k: KernelBuilder, value: Expr, shift: Expr | int, least: int = MIN_SHIFT) -> Expr:
    """Return value / 2^shift, ties away from zero; value itself where shift is 0 or less. shift: int32, at least `least`."""
    dtype = str(value.ty.dtype)
    if isinstance(shift, int) and shift <= 0:
        return value
    value = k.let("scaled", value, dtype)
    sign = tirx.shift_right(value, 31 if dtype == "int32" else 63)
    if isinstance(shift, int):
        return tirx.shift_right(value + sign + constant(1 << (shift - 1), dtype), shift)
    one = constant(1, dtype)
    if least >= 1:
        return tirx.shift_right(value + sign + tirx.shift_left(one, shift - 1), shift)
    right = k.let("right", tirx.max(shift, 0), "int32")
    half = tirx.shift_right(tirx.shift_left(one, right), 1)
    return tirx.shift_right(value + tirx.Select(right > 0, sign, constant(0, dtype)) + half, right)


class Requantizer:
    """Scale exact sums in a kernel by multiplier / 2^31 / 2^shift: both are numbers, or int32 buffers read at a place."""

    def __init__(
        self, context: Context, k: KernelBuilder, multiplier: int | Buffer, shift: int | Buffer, wide: bool, prefix: str = ""
    ) -> None:  # fmt: skip
        """wide: whether sums are int64 and reach 2^32, or int32 and stay below 2^30. prefix: of the names of parameters."""
        self.k, self.wide = k, wide
        shifts = _values(context, shift)
        self.least, self.most = (MIN_SHIFT, MAX_SHIFT) if shifts is None else (int(shifts.min()), int(shifts.max()))
        if self.least < MIN_SHIFT or self.most > MAX_SHIFT:
            raise RefusedError(
                f"a requantisation with shifts from {self.least} to {self.most}",
                f"use shifts from {MIN_SHIFT} to {MAX_SHIFT}",
            )
        self._multiplier = _parameter(context, k, f"{prefix}multiplier", multiplier)
        self._shift = _parameter(context, k, f"{prefix}shift", shift)

    def scaled(self, total: Expr, at: Expr = 0) -> Expr:
        """Return total * multiplier[at] / 2^31 / 2^shift[at] with the two roundings of `dsopt.ops.rounding`, not clamped."""
        k = self.k
        shift = self._shift if isinstance(self._shift, int) else self._shift[at]
        if self.least < self.most:
            shift = k.let("by", shift, "int32")
        if self.least < 0:
            total = self._shifted_left(total, shift)
        multiplier = self._multiplier if isinstance(self._multiplier, int) else self._multiplier[at]
        high = high_product(k, total, multiplier, "int64" if self.wide or self.least < 0 else "int32")
        return high if self.most <= 0 else shift_right(k, high, shift, self.least)

    def _shifted_left(self, total: Expr, shift: Expr | int) -> Expr:
        """Return total * 2^-shift for shifts below 0, where a sum beyond int32 saturates any result, however large it is."""
        if self.wide:
            near = limited(total, -ACCUMULATOR_LIMIT, ACCUMULATOR_LIMIT)
            total = near if self.most < 0 else tirx.Select(shift < 0, near, total)
        total = cast(total, "int64")
        if isinstance(shift, int):
            return total * constant(1 << -shift, "int64")
        return total * tirx.shift_left(constant(1, "int64"), tirx.max(0 - shift, 0))


def _values(context: Context, parameter: int | Buffer) -> np.ndarray[Any, Any] | None:
    return np.array([parameter]) if isinstance(parameter, int) else context.constant(parameter)


def _parameter(context: Context, k: KernelBuilder, name: str, parameter: int | Buffer) -> int | TirBuffer:
    """Return a number where all values are known and equal, else the buffer as the kernel reads it."""
    values = _values(context, parameter)
    if values is not None and values.min() == values.max():
        return int(values.flat[0])
    assert isinstance(parameter, Buffer)
    return k.read(name, parameter)
