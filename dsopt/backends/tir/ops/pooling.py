"""Maximum, average and adaptive pooling in one to three spatial dims."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack

from dsopt.backends.tir.ops.activation import number
from dsopt.backends.tir.ops.convolution import Window, spread
from dsopt.backends.tir.program import ITEM_BYTES, Buffer
from dsopt.backends.tir.registry import Context, RefusedError, lowering
from dsopt.backends.tir.tvm_adapter import Expr, constant, element, tirx

DIMS = ("d", "h", "w")


def windows_of(
    x: Buffer, rank: int, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[Window]:
    """Return how a pool moves over each of the last `rank` dims; no stride is one kernel's width."""
    sizes = x.shape[-rank:]
    steps = stride or kernel
    spreads = [spread(values, rank) for values in (kernel, steps, padding, dilation)]
    return [Window(sizes[i], *(values[i] for values in spreads)) for i in range(rank)]


def flat(shape: Sequence[int], rank: int) -> tuple[int, ...]:
    """Merge all dims before the spatial ones."""
    return (math.prod(shape[:-rank]), *shape[-rank:])


def grid_of(shape: tuple[int, ...], names: Sequence[str]) -> dict[str, int]:
    """Return the grid over a result of flattened channels and spatial dims."""
    return {"c": shape[0]} | {f"o{name}": size for name, size in zip(names, shape[1:], strict=True)}


def pool_maximum(
    context: Context, x: Buffer, windows: list[Window], with_indices: bool
) -> tuple[Buffer, Buffer | None]:
    """Write the kernel of a maximum over windows. Returns the result and, with_indices, the places of what won."""
    rank = len(windows)
    names, shape = DIMS[3 - rank :], flat(context.shape, rank)
    result = context.result()
    indices = context.result(1) if with_indices else None
    with context.kernel() as k:
        source, y = k.read("x", x, flat(x.shape, rank)), k.write("y", result, shape)
        where = k.write("where", indices, shape) if indices else None
        with k.grid(**grid_of(shape, names)) as (c, *out):
            largest = k.local("largest", constant(_lowest(x.dtype), x.dtype), x.dtype)
            best = k.local("best", 0, "int32") if where is not None else None
            bounds = [w.bounds(k, n, o, s) for w, n, o, s in zip(windows, names, out, shape[1:], strict=True)]
            with ExitStack() as loops:
                taps = [
                    loops.enter_context(k.loop(f"k{n}", low, high))
                    for n, (_, low, high) in zip(names, bounds, strict=True)
                ]
                places = [start + tap * w.dilation for (start, _, _), tap, w in zip(bounds, taps, windows, strict=True)]
                value = element(source, c, *places)
                if best is None:
                    k.store(largest, tirx.max(value, largest[0]))
                else:
                    with k.when(value > largest[0]):
                        k.store(largest, value)
                        k.store(best, _flat_index(places, [w.size for w in windows]))
            k.store(y, largest[0], c, *out)
            if where is not None and best is not None:
                k.store(where, tirx.Cast("int64", best[0]), c, *out)
    return result, indices


def _lowest(dtype: str) -> float:
    return -math.inf if dtype == "float32" else 0 if dtype == "uint8" else -(1 << (8 * ITEM_BYTES[dtype] - 1))


def _flat_index(places: Sequence[Expr], sizes: Sequence[int]) -> Expr:
    index: Expr = 0
    for place, size in zip(places, sizes, strict=True):
        index = index * size + place
    return index


def _register_max(rank: int) -> None:
    @lowering(f"aten.max_pool{rank}d.default")
    def max_pool(
        context: Context,
        x: Buffer,
        kernel: list[int],
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        ceil_mode: bool,
    ) -> Buffer:
        return pool_maximum(context, x, windows_of(x, rank, kernel, stride, padding, dilation), False)[0]

    @lowering(f"aten.max_pool{rank}d_with_indices.default")
    def max_pool_with_indices(
        context: Context,
        x: Buffer,
        kernel: list[int],
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        ceil_mode: bool,
    ) -> tuple[Buffer | None, ...]:
        return pool_maximum(context, x, windows_of(x, rank, kernel, stride, padding, dilation), True)


for _rank in (1, 2, 3):
    _register_max(_rank)


def _avg_pool(
    context: Context, x: Buffer, windows: list[Window], count_include_pad: bool, divisor: int | None
) -> Buffer:
    rank = len(windows)
    names, shape = DIMS[3 - rank :], flat(context.shape, rank)
    result = context.result()
    with context.kernel() as k:
        source, y = k.read("x", x, flat(x.shape, rank)), k.write("y", result, shape)
        with k.grid(**grid_of(shape, names)) as (c, *out):
            bounds = [w.bounds(k, n, o, s) for w, n, o, s in zip(windows, names, out, shape[1:], strict=True)]
            total = k.local("total", 0.0, "float32")
            with ExitStack() as loops:
                taps = [
                    loops.enter_context(k.loop(f"k{n}", low, high))
                    for n, (_, low, high) in zip(names, bounds, strict=True)
                ]
                places = [start + tap for (start, _, _), tap in zip(bounds, taps, strict=True)]
                k.store(total, total[0] + element(source, c, *places))
            count = count_of(windows, bounds, shape[1:], count_include_pad)
            k.store(y, _divided(total[0], count if divisor is None else divisor), c, *out)
    return result


def count_of(
    windows: Sequence[Window], bounds: Sequence[tuple[Expr, Expr, Expr]], sizes: Sequence[int], count_include_pad: bool
) -> Expr:
    """Return how many elements a window of an average counts; a number where all windows count the same."""
    count: Expr = 1
    for window, (start, low, high), size in zip(windows, bounds, sizes, strict=True):
        count = count * (_padded_count(window, start, size) if count_include_pad else high - low)
    return count


def _padded_count(window: Window, start: Expr, output_size: int) -> Expr:
    """Return how many positions lie inside the padded input; only ceil_mode lets a window leave it."""
    last = (output_size - 1) * window.stride - window.padding + window.kernel
    if last <= window.size + window.padding:
        return window.kernel
    return tirx.min(window.kernel, window.size + window.padding - start)


def _divided(total: Expr, count: Expr) -> Expr:
    return total * number(1.0 / count) if isinstance(count, int) else total / tirx.Cast("float32", count)


def _register_average(rank: int) -> None:
    def avg_pool(
        context: Context, x: Buffer, kernel: list[int], stride: list[int], padding: list[int], ceil_mode: bool, count_pad: bool,
        divisor: int | None = None,
    ) -> Buffer:  # fmt: skip
        if x.dtype != "float32":
            raise RefusedError(f"an average of {x.dtype}", "convert the input to float32")
        return _avg_pool(context, x, windows_of(x, rank, kernel, stride, padding, [1]), count_pad, divisor)

    lowering(f"aten.avg_pool{rank}d.default")(avg_pool)


for _rank in (1, 2, 3):
    _register_average(_rank)


def _adaptive(context: Context, x: Buffer, rank: int, maximum: bool) -> Buffer:
    """Average or maximum of input positions floor(o I / O) .. ceil((o + 1) I / O)."""
    names, shape, sizes = DIMS[3 - rank :], flat(context.shape, rank), x.shape[-rank:]
    result = context.result()
    with context.kernel() as k:
        source, y = k.read("x", x, flat(x.shape, rank)), k.write("y", result, shape)
        with k.grid(**grid_of(shape, names)) as (c, *out):
            bounds = []
            for name, o, size, out_size in zip(names, out, sizes, shape[1:], strict=True):
                if size % out_size == 0:
                    low = 0 if out_size == 1 else k.let(f"{name}_low", o * (size // out_size))
                    bounds.append((low, low + size // out_size))
                else:
                    low = k.let(f"{name}_low", tirx.truncdiv(o * size, out_size))
                    bounds.append(
                        (low, k.let(f"{name}_high", tirx.truncdiv((o + 1) * size + (out_size - 1), out_size)))
                    )
            total = k.local("largest" if maximum else "total", -math.inf if maximum else 0.0, "float32")
            with ExitStack() as loops:
                places = [
                    loops.enter_context(k.loop(f"i{n}", low, high))
                    for n, (low, high) in zip(names, bounds, strict=True)
                ]
                value = element(source, c, *places)
                k.store(total, tirx.max(value, total[0]) if maximum else total[0] + value)
            count: Expr = 1
            for low, high in bounds:
                extent = high - low
                count = count * (extent if isinstance(extent, int) else _constant_extent(extent))
            k.store(y, total[0] if maximum else _divided(total[0], count), c, *out)
    return result


def _constant_extent(extent: Expr) -> Expr:
    from dsopt.backends.tir.tvm_adapter import analyzer

    simple = analyzer().simplify(extent)
    return int(simple.value) if type(simple).__name__ == "IntImm" else simple


def _register_adaptive(rank: int) -> None:
    @lowering(
        f"aten.adaptive_avg_pool{rank}d.default", *([f"aten._adaptive_avg_pool{rank}d.default"] if rank > 1 else [])
    )
    def adaptive_average(context: Context, x: Buffer, output_size: list[int]) -> Buffer:
        return _adaptive(context, x, rank, False)

    @lowering(f"aten.adaptive_max_pool{rank}d.default")
    def adaptive_maximum(context: Context, x: Buffer, output_size: list[int]) -> tuple[Buffer | None, ...]:
        return (_adaptive(context, x, rank, True), None)


for _rank in (1, 2, 3):
    _register_adaptive(_rank)
