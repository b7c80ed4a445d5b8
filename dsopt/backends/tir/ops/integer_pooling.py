"""q_max_pool, q_avg_pool and q_mean: maxima, and sums in int32 that are divided by their requantisation."""

from __future__ import annotations

from contextlib import ExitStack

from dsopt.backends.tir.ops.integer_values import centred, clamped, need_integers
from dsopt.backends.tir.ops.pooling import DIMS, count_of, flat, grid_of, pool_maximum, windows_of
from dsopt.backends.tir.ops.reduction import ReductionNest, axes_of
from dsopt.backends.tir.ops.requantize import Requantizer
from dsopt.backends.tir.program import Buffer
from dsopt.backends.tir.registry import Context, lowering
from dsopt.backends.tir.tvm_adapter import element


@lowering("dsopt.q_max_pool.default")
def _max_pool(
    context: Context, x: Buffer, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil_mode: bool
) -> Buffer:  # fmt: skip
    need_integers(x)
    return pool_maximum(context, x, windows_of(x, len(kernel), kernel, stride, padding, dilation), False)[0]


@lowering("dsopt.q_avg_pool.default")
def _avg_pool(
    context: Context, x: Buffer, multiplier: Buffer, shift: Buffer, kernel: list[int], stride: list[int], padding: list[int],
    ceil_mode: bool, count_include_pad: bool, x_zero: int, y_zero: int, low: int, high: int, bits: int,
) -> Buffer:  # fmt: skip
    need_integers(x, multiplier, shift)
    rank = len(kernel)
    windows = windows_of(x, rank, kernel, stride, padding, [1])
    names, shape = DIMS[3 - rank :], flat(context.shape, rank)
    result = context.result()
    with context.kernel() as k:
        source = k.read("x", x, flat(x.shape, rank))
        scale = Requantizer(context, k, multiplier, shift, False)
        y = k.write("y", result, shape)
        with k.grid(**grid_of(shape, names)) as (c, *out):
            bounds = [w.bounds(k, n, o, s) for w, n, o, s in zip(windows, names, out, shape[1:], strict=True)]
            total = k.local("total", 0, "int32")
            with ExitStack() as loops:
                taps = [
                    loops.enter_context(k.loop(f"k{n}", first, end))
                    for n, (_, first, end) in zip(names, bounds, strict=True)
                ]
                places = [start + tap for (start, _, _), tap in zip(bounds, taps, strict=True)]
                k.store(total, total[0] + centred(element(source, c, *places), x_zero))
            count = k.let("count", count_of(windows, bounds, shape[1:], count_include_pad))
            scaled = scale.scaled(total[0], count)
            k.store(y, clamped(scaled, y_zero, low, high, context.dtype), c, *out)
    return result


@lowering("dsopt.q_mean.default")
def _mean(
    context: Context, x: Buffer, dims: list[int], keepdim: bool, multiplier: int, shift: int, x_zero: int,
    y_zero: int, low: int, high: int, bits: int,
) -> Buffer:  # fmt: skip
    need_integers(x)
    result = context.result()
    with context.kernel() as k:
        nest = ReductionNest(k, x, axes_of(x.shape, dims), result)
        scale = Requantizer(context, k, multiplier, shift, False)
        with k.grid(**nest.grid) as index:
            total = k.local("total", 0, "int32")
            with ExitStack() as loops:
                k.store(total, total[0] + centred(nest.elements(index, loops), x_zero))
            scaled = scale.scaled(total[0])
            k.store(nest.y, clamped(scaled, y_zero, low, high, context.dtype), *index)
    return result
