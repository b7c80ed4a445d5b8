"""The loop form of `dsopt.ops.rounding`: high_product, shift_right and requantize as statements of a kernel.

Where the shifts are numbers, or weights that are known when the kernel is written, only what these shifts need is written: above
32, which nearly all of trained layers are, one product in int64 of which the high half is kept, and the rest in int32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dsopt.backends.tir.builder import KernelBuilder
from dsopt.backends.tir.ops.integer_values import cast
from dsopt.backends.tir.program import Buffer
from dsopt.backends.tir.registry import Context, RefusedError
from dsopt.backends.tir.tvm_adapter import Expr, TirBuffer, constant, tirx
from dsopt.ops.rounding import MAX_SHIFT, MIN_SHIFT, MULTIPLIER_BITS, WIDE_MULTIPLIER_BITS


def high_product(k: KernelBuilder, value: Expr, multiplier: Expr | int, dtype: str) -> Expr:
    """Name value * multiplier / 2^31, ties upwards, as `dtype`; the product must fit int64."""
    product = _product(k, value, multiplier)
    return k.let("high", cast(tirx.shift_right(product + constant(1 << 30, "int64"), 31), dtype), dtype)


def shift_right(value: Expr, shift: Expr | int) -> Expr:
    """Return value / 2^shift, ties upwards; value itself where the shift is the number 0. An expression must be 1 or more."""
    dtype = str(value.ty.dtype)
    if isinstance(shift, int):
        return tirx.shift_right(value + constant(1 << (shift - 1), dtype), shift) if shift else value
    places = cast(shift, dtype)
    return tirx.shift_right(value + tirx.shift_left(constant(1, dtype), places - 1), places)


def _product(k: KernelBuilder, value: Expr, multiplier: Expr | int) -> Expr:
    factor = constant(multiplier, "int64") if isinstance(multiplier, int) else cast(multiplier, "int64")
    return k.let("product", cast(value, "int64") * factor, "int64")


class Requantizer:
    """Scale exact sums in a kernel by multiplier / 2^shift: both are numbers, or int32 buffers read at a place."""

    def __init__(
        self, context: Context, k: KernelBuilder, multiplier: int | Buffer, shift: int | Buffer, wide: bool, prefix: str = ""
    ) -> None:  # fmt: skip
        """wide: whether sums are int64 and reach 2^38, or int32. prefix: of the names of parameters."""
        self.k, self.wide = k, wide
        shifts, multipliers = _values(context, shift), _values(context, multiplier)
        self.least, self.most = (MIN_SHIFT, MAX_SHIFT) if shifts is None else (int(shifts.min()), int(shifts.max()))
        if self.least < MIN_SHIFT or self.most > MAX_SHIFT:
            raise RefusedError(
                f"a requantisation with shifts from {self.least} to {self.most}",
                f"use shifts from {MIN_SHIFT} to {MAX_SHIFT}",
            )
        bits = WIDE_MULTIPLIER_BITS if wide else MULTIPLIER_BITS
        if multipliers is not None and int(np.abs(multipliers.astype(np.int64)).max()) >= 1 << bits:
            raise RefusedError(
                f"a requantisation of int{64 if wide else 32} with a multiplier of more than {bits} bits",
                "make it with dsopt.ops.rounding.multiplier_and_shift",
            )
        self._multiplier = _parameter(context, k, f"{prefix}multiplier", multiplier)
        self._shift = _parameter(context, k, f"{prefix}shift", shift)

    def scaled(self, total: Expr, at: Expr = 0) -> Expr:
        """Return total * multiplier[at] / 2^shift[at], rounded once, not clamped: int32 where it fits, else int64."""
        k = self.k
        multiplier = self._multiplier if isinstance(self._multiplier, int) else self._multiplier[at]
        shift = self._shift if isinstance(self._shift, int) else self._shift[at]
        product = _product(k, total, multiplier)
        if not self.wide and self.least > 32:
            # floor(floor(p / 2^32) + 2^(s-33)) / 2^(s-32)) = floor((p + 2^(s-1)) / 2^s)
            high = k.let("high", cast(tirx.shift_right(product, 32), "int32"), "int32")
            return shift_right(high, shift - 32 if isinstance(shift, int) else k.let("by", shift - 32, "int32"))
        places = shift if isinstance(shift, int) else k.let("by", shift, "int32")
        return k.let("scaled", shift_right(product, places), "int64")


def _values(context: Context, parameter: int | Buffer) -> np.ndarray[Any, Any] | None:
    return np.array([parameter]) if isinstance(parameter, int) else context.constant(parameter)


def _parameter(context: Context, k: KernelBuilder, name: str, parameter: int | Buffer) -> int | TirBuffer:
    """Return a number where all values are known and equal, else the buffer as the kernel reads it."""
    values = _values(context, parameter)
    if values is not None and values.min() == values.max():
        return int(values.flat[0])
    assert isinstance(parameter, Buffer)
    return k.read(name, parameter)
