"""Convolutions in one to three spatial dims: plain, grouped, depthwise, dilated, transposed, with bias and activation in the store.

x (B, C, *spatial), weight (N, C / groups, *kernel) or, transposed, (C, N / groups, *kernel), y (B, N, *spatial'). The sum runs
over the kernel positions that fall inside the input, so that padding costs neither memory nor a test per element.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from dsopt.backends.tir.builder import KernelBuilder
from dsopt.backends.tir.ops.activation import activate
from dsopt.backends.tir.program import Buffer
from dsopt.backends.tir.registry import Context, RefusedError, lowering
from dsopt.backends.tir.tvm_adapter import Expr, element, tirx

_DIMS = ("d", "h", "w")


@dataclass(frozen=True)
class Window:
    """How a kernel moves over one spatial dim: input and kernel sizes, stride, padding before, dilation."""

    size: int
    kernel: int
    stride: int
    padding: int
    dilation: int

    def bounds(self, k: KernelBuilder, name: str, output: Expr, output_size: int) -> tuple[Expr, Expr, Expr]:
        """Return (start, low, high): kernel position p in low..high-1 reads the input at start + p * dilation, inside it."""
        start = k.let(f"{name}_start", output * self.stride - self.padding)
        last_end = (output_size - 1) * self.stride - self.padding + (self.kernel - 1) * self.dilation
        low: Expr = 0
        high: Expr = self.kernel
        if self.padding > 0:
            low = k.let(f"{name}_low", tirx.max(0, _ceil_div(0 - start, self.dilation)))
        if last_end >= self.size:
            high = k.let(f"{name}_high", tirx.min(self.kernel, _ceil_div(self.size - start, self.dilation)))
        return start, low, high


def _ceil_div(value: Expr, divisor: int) -> Expr:
    """Divide upwards; a negative value may give anything up to 0, which max and min above take care of."""
    return value if divisor == 1 else tirx.truncdiv(value + (divisor - 1), divisor)


def spread(values: Sequence[int] | int, rank: int) -> tuple[int, ...]:
    """Repeat a single value for every spatial dim, as torch does."""
    if isinstance(values, int):
        return (values,) * rank
    return tuple(values) * rank if len(values) == 1 else tuple(values)


@dataclass(frozen=True)
class Convolution:
    """The arguments of a convolution after defaults are spread over the spatial dims."""

    x: Buffer
    weight: Buffer
    bias: Buffer | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    activation: str = "none"
    params: tuple[float, ...] = ()


def _shapes(context: Context, c: Convolution) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of input and output with a batch dim."""
    rank = len(c.stride)
    batched = len(c.x.shape) == rank + 2
    return (c.x.shape, context.shape) if batched else ((1, *c.x.shape), (1, *context.shape))


def _direct(context: Context, c: Convolution) -> Buffer:
    (B, C, *sizes), (_, N, *out_sizes) = _shapes(context, c)
    rank, kernel = len(sizes), c.weight.shape[2:]
    C_g, N_g = C // c.groups, N // c.groups
    result = context.result()
    names = _DIMS[3 - rank :]
    work = B * N * math.prod(out_sizes) * C_g * math.prod(kernel)
    with context.kernel(multiply_adds=work) as k:
        x = k.read("x", c.x, (B, C, *sizes))
        w = k.read("weight", c.weight)
        b = k.read("bias", c.bias) if c.bias else None
        y = k.write("y", result, (B, N, *out_sizes))
        extents = {"n": B, "oc": N} | {f"o{name}": size for name, size in zip(names, out_sizes, strict=True)}
        with k.grid(**extents) as (n, oc, *out):
            first = 0 if c.groups == 1 else k.let("first", tirx.truncdiv(oc, N_g) * C_g if N_g > 1 else oc * C_g)
            total = k.local("total", b[oc] if b is not None else 0.0, "float32")
            windows = [
                Window(sizes[i], kernel[i], c.stride[i], c.padding[i], c.dilation[i]).bounds(
                    k, names[i], out[i], out_sizes[i]
                )
                for i in range(rank)
            ]
            with ExitStack() as loops:
                channel = loops.enter_context(k.loop("ic", 0, C_g)) if C_g > 1 else 0
                taps = [
                    loops.enter_context(k.loop(f"k{name}", low, high)) if size > 1 else 0
                    for name, size, (_, low, high) in zip(names, kernel, windows, strict=True)
                ]
                places = [
                    start + tap * step for (start, _, _), tap, step in zip(windows, taps, c.dilation, strict=True)
                ]
                with ExitStack() as guards:
                    for size, window in zip(kernel, windows, strict=True):
                        if size == 1 and not (isinstance(window[1], int) and isinstance(window[2], int)):
                            guards.enter_context(k.when(tirx.all(window[1] <= 0, window[2] > 0)))
                    k.store(total, total[0] + element(x, n, first + channel, *places) * element(w, oc, channel, *taps))
            k.store(y, activate(total[0], c.activation, c.params), n, oc, *out)
    return result


def _transposed(context: Context, c: Convolution) -> Buffer:
    """Gather form: output o takes input i with kernel position t where i * stride - padding + t * dilation = o."""
    (B, C, *sizes), (_, N, *out_sizes) = _shapes(context, c)
    rank, kernel = len(sizes), c.weight.shape[2:]
    C_g, N_g = C // c.groups, N // c.groups
    result = context.result()
    names = _DIMS[3 - rank :]
    with context.kernel(multiply_adds=B * C * math.prod(sizes) * N_g * math.prod(kernel)) as k:
        x = k.read("x", c.x, (B, C, *sizes))
        w = k.read("weight", c.weight)
        b = k.read("bias", c.bias) if c.bias else None
        y = k.write("y", result, (B, N, *out_sizes))
        extents = {"n": B, "oc": N} | {f"o{name}": size for name, size in zip(names, out_sizes, strict=True)}
        with k.grid(**extents) as (n, oc, *out):
            total = k.local("total", b[oc] if b is not None else 0.0, "float32")
            first, channel_in_group = (
                (0, oc) if c.groups == 1 else (tirx.truncdiv(oc, N_g) * C_g, tirx.truncmod(oc, N_g))
            )
            with ExitStack() as nest:
                taps, places = [], []
                for i, name in enumerate(names):
                    tap = nest.enter_context(k.loop(f"k{name}", 0, kernel[i])) if kernel[i] > 1 else 0
                    reach = k.let(f"{name}_reach", out[i] + c.padding[i] - tap * c.dilation[i])
                    place = k.let(f"{name}_place", tirx.truncdiv(reach, c.stride[i]) if c.stride[i] > 1 else reach)
                    hits = tirx.all(reach >= 0, place < sizes[i])
                    if c.stride[i] > 1:
                        hits = tirx.all(hits, tirx.truncmod(reach, c.stride[i]) == 0)
                    nest.enter_context(k.when(hits))
                    taps.append(tap)
                    places.append(place)
                channel = nest.enter_context(k.loop("ic", 0, C_g))
                k.store(
                    total,
                    total[0]
                    + element(x, n, first + channel, *places) * element(w, first + channel, channel_in_group, *taps),
                )
            k.store(y, activate(total[0], c.activation, c.params), n, oc, *out)
    return result


def _emit(context: Context, c: Convolution, transposed: bool) -> Buffer:
    if c.x.dtype != "float32" or c.weight.dtype != "float32":
        raise RefusedError(f"a convolution of {c.x.dtype} by {c.weight.dtype}", "convert both to float32")
    return _transposed(context, c) if transposed else _direct(context, c)


@lowering("aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default")
def _conv(
    context: Context, x: Buffer, weight: Buffer, bias: Buffer | None, stride: list[int], padding: list[int], dilation: list[int],
    groups: int,
) -> Buffer:  # fmt: skip
    rank = len(weight.shape) - 2
    arguments = (spread(stride, rank), spread(padding, rank), spread(dilation, rank))
    return _emit(context, Convolution(x, weight, bias, *arguments, groups), False)


@lowering("aten.conv1d.padding", "aten.conv2d.padding", "aten.conv3d.padding")
def _conv_padding(
    context: Context, x: Buffer, weight: Buffer, bias: Buffer | None, stride: list[int], padding: str, dilation: list[int],
    groups: int,
) -> Buffer:  # fmt: skip
    rank = len(weight.shape) - 2
    steps = spread(dilation, rank)
    before = [
        0 if padding == "valid" else step * (size - 1) // 2 for step, size in zip(steps, weight.shape[2:], strict=True)
    ]
    return _emit(context, Convolution(x, weight, bias, spread(stride, rank), tuple(before), steps, groups), False)


@lowering("aten.conv_transpose1d.default", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input")
def _conv_transpose(
    context: Context, x: Buffer, weight: Buffer, bias: Buffer | None, stride: list[int], padding: list[int],
    output_padding: list[int], groups: int, dilation: list[int],
) -> Buffer:  # fmt: skip
    rank = len(weight.shape) - 2
    arguments = (spread(stride, rank), spread(padding, rank), spread(dilation, rank))
    return _emit(context, Convolution(x, weight, bias, *arguments, groups), True)


@lowering("dsopt.conv_act.default")
def _conv_act(
    context: Context, x: Buffer, weight: Buffer, bias: Buffer | None, stride: list[int], padding: list[int], dilation: list[int],
    transposed: bool, output_padding: list[int], groups: int, activation: str, params: list[float],
) -> Buffer:  # fmt: skip
    rank = len(weight.shape) - 2
    arguments = (spread(stride, rank), spread(padding, rank), spread(dilation, rank))
    return _emit(context, Convolution(x, weight, bias, *arguments, groups, activation, tuple(params)), transposed)


@lowering("aten.convolution.default")
def _convolution(
    context: Context, x: Buffer, weight: Buffer, bias: Buffer | None, stride: list[int], padding: list[int], dilation: list[int],
    transposed: bool, output_padding: list[int], groups: int,
) -> Buffer:  # fmt: skip
    return _conv_act(
        context, x, weight, bias, stride, padding, dilation, transposed, output_padding, groups, "none", []
    )  # type: ignore[return-value]
