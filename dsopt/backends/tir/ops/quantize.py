"""quantize, dequantize and dequantize_channel: between float32 and integers, bit for bit as `dsopt.ops.rounding` says."""

from __future__ import annotations

import math

from dsopt.backends.tir.builder import KernelBuilder
from dsopt.backends.tir.ops.activation import clamp, number
from dsopt.backends.tir.ops.broadcast import elementwise, elementwise_kernel
from dsopt.backends.tir.ops.integer_values import centred, need_integers
from dsopt.backends.tir.ops.softmax import split_at
from dsopt.backends.tir.program import Buffer
from dsopt.backends.tir.registry import Context, lowering
from dsopt.backends.tir.tvm_adapter import Expr, TirBuffer, tirx
from dsopt.ops.rounding import float_bounds


@lowering("dsopt.quantize.default")
def _quantize(context: Context, x: Buffer, scale: float, zero_point: int, low: int, high: int) -> Buffer:
    """Round x / scale, half to even, and clamp it as a float, so that infinity and whatever is too large can be cast."""
    least, most = float_bounds(low, high)

    def value(k: KernelBuilder, v: Expr) -> Expr:
        steps = k.let("steps", tirx.nearbyint(v / number(scale)), "float32")
        known = tirx.Select(tirx.isnan(steps), number(0.0), steps)
        moved = known + number(float(zero_point)) if zero_point else known
        return tirx.Cast(context.dtype, clamp(moved, least, most))

    return elementwise_kernel(context, [x], value, "float32")


@lowering("dsopt.dequantize.default")
def _dequantize(context: Context, q: Buffer, scale: float, zero_point: int) -> Buffer:
    need_integers(q)
    return elementwise(context, [q], lambda v: _real(centred(v, zero_point), number(scale)), "int32")


def _real(steps: Expr, scale: Expr) -> Expr:
    return tirx.Cast("float32", steps) * scale


@lowering("dsopt.dequantize_channel.default")
def _dequantize_channel(
    context: Context, q: Buffer, scale: Buffer, zero_point: Buffer | None, axis: int, group: int, bits: int
) -> Buffer:
    """A scale is one number, one for each channel, or (N, ceil(K / group)) for the groups of inputs of a weight (N, K, ...)."""
    need_integers(q, zero_point)
    if group > 0:
        sizes = (q.shape[0], q.shape[1], math.prod(q.shape[2:]))
    else:
        sizes = split_at(q.shape, axis)
    result = context.result()
    with context.kernel() as k:
        source, factors = k.read("q", q, sizes), k.read("scale", scale)
        zeros = k.read("zero_point", zero_point) if zero_point else None
        y = k.write("y", result, sizes)
        with k.grid(a=sizes[0], b=sizes[1], c=sizes[2]) as (a, b, c):

            def of_channel(values: TirBuffer, shape: tuple[int, ...]) -> Expr:
                if not shape:
                    return values[0]
                return values[a, tirx.truncdiv(b, group)] if len(shape) == 2 else values[a if group > 0 else b]

            steps = tirx.Cast("int32", source[a, b, c])
            if zeros is not None and zero_point is not None:
                steps = steps - tirx.Cast("int32", of_channel(zeros, zero_point.shape))
            k.store(y, _real(steps, of_channel(factors, scale.shape)), a, b, c)
    return result
