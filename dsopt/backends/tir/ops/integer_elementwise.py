"""q_add, q_mul, q_rescale and q_lookup: each element of the result from one element of each operand, over it where it is free."""

from __future__ import annotations

import numpy as np

from dsopt.backends.tir.builder import KernelBuilder
from dsopt.backends.tir.ops.broadcast import elementwise_kernel
from dsopt.backends.tir.ops.integer_values import cast, centred, clamped, need_integers, reach, sum_dtype
from dsopt.backends.tir.ops.requantize import Requantizer, shift_right
from dsopt.backends.tir.program import Buffer
from dsopt.backends.tir.registry import Context, RefusedError, lowering
from dsopt.backends.tir.tvm_adapter import Expr, TirBuffer, tirx
from dsopt.ops.integer.elementwise import TABLE_STEP
from dsopt.ops.rounding import ACCUMULATOR_LIMIT, WIDE_LIMIT


def _rounding(shift: int, y_zero: int) -> int:
    """Return how much rounding and the zero point may add to a sum. Raises RefusedError for a shift beyond int64."""
    if shift > 62:
        raise RefusedError(f"an integer operator with a shift of {shift}", "use shifts up to 62")
    return (1 << max(shift - 1, 0)) + abs(y_zero) + 1


@lowering("dsopt.q_add.default")
def _add(
    context: Context, a: Buffer, b: Buffer, a_zero: int, b_zero: int, a_factor: int, b_factor: int, shift: int, y_zero: int,
    low: int, high: int, bits: int,
) -> Buffer:  # fmt: skip
    need_integers(a, b)
    largest = reach(a, a_zero) * abs(a_factor) + reach(b, b_zero) * abs(b_factor)
    dtype = sum_dtype(largest + _rounding(shift, y_zero))

    def value(k: KernelBuilder, p: Expr, q: Expr) -> Expr:
        total = k.let("total", centred(p, a_zero, dtype) * a_factor + centred(q, b_zero, dtype) * b_factor, dtype)
        return clamped(shift_right(total, shift), y_zero, low, high, context.dtype)

    return elementwise_kernel(context, [a, b], value, dtype)


@lowering("dsopt.q_rescale.default")
def _rescale(
    context: Context, x: Buffer, x_zero: int, factor: int, shift: int, y_zero: int, low: int, high: int, bits: int
) -> Buffer:
    need_integers(x)
    dtype = sum_dtype(reach(x, x_zero) * abs(factor) + _rounding(shift, y_zero))

    def value(k: KernelBuilder, p: Expr) -> Expr:
        scaled = centred(p, x_zero, dtype) * factor
        return clamped(shift_right(scaled, shift), y_zero, low, high, context.dtype)

    return elementwise_kernel(context, [x], value, dtype)


@lowering("dsopt.q_mul.default")
def _mul(
    context: Context, a: Buffer, b: Buffer, a_zero: int, b_zero: int, multiplier: int, shift: int, y_zero: int, low: int, high: int,
    bits: int,
) -> Buffer:  # fmt: skip
    need_integers(a, b)
    largest = reach(a, a_zero) * reach(b, b_zero)
    if largest >= WIDE_LIMIT:
        raise RefusedError(f"an integer product of {a.dtype} and {b.dtype}", "use operands of at most 16 bits")
    wide = largest >= ACCUMULATOR_LIMIT
    dtype = "int64" if wide else "int32"

    def value(k: KernelBuilder, p: Expr, q: Expr) -> Expr:
        product = centred(p, a_zero, dtype) * centred(q, b_zero, dtype)
        scaled = Requantizer(context, k, multiplier, shift, wide).scaled(product)
        return clamped(scaled, y_zero, low, high, context.dtype)

    return elementwise_kernel(context, [a, b], value, dtype)


@lowering("dsopt.q_lookup.default")
def _lookup(
    context: Context, x: Buffer, table: Buffer, shift: int, y_zero: int, low: int, high: int, bits: int
) -> Buffer:
    need_integers(x, table)
    if x.dtype == "int8":
        return elementwise_kernel(
            context, [x], lambda k, entries, p: tirx.Cast(context.dtype, entries[p + 128]), "int32", [("table", table)]
        )
    values = context.constant(table)
    most = reach(table) if values is None else int(np.abs(values.astype(np.int64)).max())
    dtype = sum_dtype(3 * TABLE_STEP * most + _rounding(shift + 7, y_zero))

    def value(k: KernelBuilder, entries: TirBuffer, p: Expr) -> Expr:
        place = k.let("place", p + 32768, "int32")
        entry = k.let("entry", tirx.shift_right(place, 7), "int32")
        rest = cast(tirx.bitwise_and(place, TABLE_STEP - 1), dtype)
        start = k.let("start", cast(entries[entry], dtype), dtype)
        line = start * TABLE_STEP + (cast(entries[entry + 1], dtype) - start) * rest
        return clamped(shift_right(line, shift + 7), y_zero, low, high, context.dtype)

    return elementwise_kernel(context, [x], value, "int32", [("table", table)])
