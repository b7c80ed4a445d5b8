"""q_max_pool and q_avg_pool on images with channels last: neighbouring results read neighbouring bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from dsopt.backends.tir.builder import KernelBuilder
from dsopt.backends.tir.ops.integer_values import centred, clamped
from dsopt.backends.tir.ops.pooling import DIMS, count_of, windows_of
from dsopt.backends.tir.ops.requantize import Requantizer
from dsopt.backends.tir.program import Buffer
from dsopt.backends.tir.registry import Context, UnsuitedError
from dsopt.backends.tir.tvm_adapter import Expr, element, tirx

_Window = tuple[Expr, Expr, Expr]


def max_pool(
    context: Context, x: Buffer, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil_mode: bool
) -> Buffer:  # fmt: skip
    """Lower q_max_pool of an image with channels last."""
    _need_image(x, kernel)
    windows = windows_of(x, len(kernel), kernel, stride, padding, dilation)
    result = context.result(channels_last=True)
    with context.kernel() as k:
        source, y = k.read("x", x, x.stored_shape), k.write("y", result, result.stored_shape)
        with k.grid(**_grid(result)) as (n, *out, c):
            largest = k.local("largest", -128, x.dtype)
            bounds = [
                w.bounds(k, d, o, s) for w, d, o, s in zip(windows, _names(kernel), out, result.shape[2:], strict=True)
            ]
            with _taps(k, kernel, bounds, lambda d, at: at * windows[d].dilation) as places:
                k.store(largest, tirx.max(element(source, n, *places, c), largest[0]))
            k.store(y, largest[0], n, *out, c)
    return result


def average_pool(
    context: Context, x: Buffer, multiplier: Buffer, shift: Buffer, kernel: list[int], stride: list[int], padding: list[int],
    ceil_mode: bool, count_include_pad: bool, x_zero: int, y_zero: int, low: int, high: int, bits: int,
) -> Buffer:  # fmt: skip
    """Lower q_avg_pool of an image with channels last."""
    _need_image(x, kernel)
    windows = windows_of(x, len(kernel), kernel, stride, padding, [1])
    result = context.result(channels_last=True)
    with context.kernel() as k:
        source = k.read("x", x, x.stored_shape)
        scale = Requantizer(context, k, multiplier, shift, False)
        y = k.write("y", result, result.stored_shape)
        with k.grid(**_grid(result)) as (n, *out, c):
            sizes = result.shape[2:]
            bounds = [w.bounds(k, d, o, s) for w, d, o, s in zip(windows, _names(kernel), out, sizes, strict=True)]
            total = k.local("total", 0, "int32")
            with _taps(k, kernel, bounds, lambda _, at: at) as places:
                k.store(total, total[0] + centred(element(source, n, *places, c), x_zero))
            count = k.let("count", count_of(windows, bounds, sizes, count_include_pad))
            k.store(y, clamped(scale.scaled(total[0], count), y_zero, low, high, context.dtype), n, *out, c)
    return result


def _need_image(x: Buffer, kernel: Sequence[int]) -> None:
    if not x.channels_last or len(x.shape) != len(kernel) + 2 or x.dtype != "int8":
        raise UnsuitedError("")


def _names(kernel: Sequence[int]) -> Sequence[str]:
    return DIMS[3 - len(kernel) :]


def _grid(result: Buffer) -> dict[str, int]:
    batch, channels, *spatial = result.shape
    return (
        {"n": batch} | {f"o{name}": size for name, size in zip(_names(spatial), spatial, strict=True)} | {"c": channels}
    )


@contextmanager
def _taps(
    k: KernelBuilder, kernel: Sequence[int], bounds: Sequence[_Window], step: Callable[[int, Expr], Expr]
) -> Iterator[list[Expr]]:
    """Open loops over a window, and yield the place in each dim of the image."""
    with ExitStack() as loops:
        names = [f"k{name}" for name in _names(kernel)]
        taps = [
            loops.enter_context(k.loop(name, low, high)) for name, (_, low, high) in zip(names, bounds, strict=True)
        ]
        yield [start + step(dim, tap) for dim, ((start, _, _), tap) in enumerate(zip(bounds, taps, strict=True))]
