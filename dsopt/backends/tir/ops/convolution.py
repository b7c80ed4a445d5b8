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
class Geometry:
    """How a convolution reads its input: x (B, C, *sizes), weight (.., .., *kernel), y (B, N, *out_sizes)."""

    B: int
    C: int
    N: int
    groups: int
    sizes: tuple[int, ...]
    out_sizes: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Return a letter for each spatial dim."""
        return _DIMS[3 - len(self.sizes) :]

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Return the shape of the input with a batch dim."""
        return (self.B, self.C, *self.sizes)

    @property
    def y_shape(self) -> tuple[int, ...]:
        """Return the shape of the result with a batch dim."""
        return (self.B, self.N, *self.out_sizes)

    @property
    def grid(self) -> dict[str, int]:
        """Return the grid: one step for each element of the result."""
        spatial = {f"o{name}": size for name, size in zip(self.names, self.out_sizes, strict=True)}
        return {"n": self.B, "oc": self.N} | spatial

    def multiply_adds(self, transposed: bool) -> int:
        """Return the products of one run, those with padding included."""
        C_g, N_g = self.C // self.groups, self.N // self.groups
        if transposed:
            return self.B * self.C * math.prod(self.sizes) * N_g * math.prod(self.kernel)
        return self.B * self.N * math.prod(self.out_sizes) * C_g * math.prod(self.kernel)

    def windows(self, k: KernelBuilder, out: Sequence[Expr]) -> list[tuple[Expr, Expr, Expr]]:
        """Return the bounds of the kernel in each spatial dim: see `Window.bounds`."""
        return [
            Window(self.sizes[i], self.kernel[i], self.stride[i], self.padding[i], self.dilation[i]).bounds(
                k, name, out[i], self.out_sizes[i]
            )
            for i, name in enumerate(self.names)
        ]

    def open_taps(
        self, k: KernelBuilder, loops: ExitStack, windows: Sequence[tuple[Expr, Expr, Expr]]
    ) -> tuple[list[Expr], list[Expr]]:
        """Open loops over the kernel positions inside the input. Returns the places in the kernel and in the input."""
        taps = [
            loops.enter_context(k.loop(f"k{name}", low, high)) if size > 1 else 0
            for name, size, (_, low, high) in zip(self.names, self.kernel, windows, strict=True)
        ]
        places = [start + tap * step for (start, _, _), tap, step in zip(windows, taps, self.dilation, strict=True)]
        for size, window in zip(self.kernel, windows, strict=True):
            if size == 1 and not (isinstance(window[1], int) and isinstance(window[2], int)):
                loops.enter_context(k.when(tirx.all(window[1] <= 0, window[2] > 0)))
        return taps, places

    def open_transposed_taps(
        self, k: KernelBuilder, loops: ExitStack, out: Sequence[Expr]
    ) -> tuple[list[Expr], list[Expr]]:
        """Open loops over the kernel positions t with i * stride - padding + t * dilation = out for a place i in the input.

        Returns the places in the kernel and in the input.
        """
        taps, places = [], []
        for i, name in enumerate(self.names):
            tap = loops.enter_context(k.loop(f"k{name}", 0, self.kernel[i])) if self.kernel[i] > 1 else 0
            reach = k.let(f"{name}_reach", out[i] + self.padding[i] - tap * self.dilation[i])
            place = k.let(f"{name}_place", tirx.truncdiv(reach, self.stride[i]) if self.stride[i] > 1 else reach)
            hits = tirx.all(reach >= 0, place < self.sizes[i])
            if self.stride[i] > 1:
                hits = tirx.all(hits, tirx.truncmod(reach, self.stride[i]) == 0)
            loops.enter_context(k.when(hits))
            taps.append(tap)
            places.append(place)
        return taps, places


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

    def geometry(self, y_shape: tuple[int, ...]) -> Geometry:
        """Return how the input is read; a missing batch dim is 1."""
        batched = len(self.x.shape) == len(self.stride) + 2
        (B, C, *sizes), (_, N, *out) = (self.x.shape, y_shape) if batched else ((1, *self.x.shape), (1, *y_shape))
        steps = (self.stride, self.padding, self.dilation)
        return Geometry(B, C, N, self.groups, tuple(sizes), tuple(out), self.weight.shape[2:], *steps)


def _direct(context: Context, c: Convolution) -> Buffer:
    g = c.geometry(context.shape)
    C_g, N_g = g.C // c.groups, g.N // c.groups
    result = context.result()
    with context.kernel(multiply_adds=g.multiply_adds(False)) as k:
        x = k.read("x", c.x, g.x_shape)
        w = k.read("weight", c.weight)
        b = k.read("bias", c.bias) if c.bias else None
        y = k.write("y", result, g.y_shape)
        with k.grid(**g.grid) as (n, oc, *out):
            first = 0 if c.groups == 1 else k.let("first", tirx.truncdiv(oc, N_g) * C_g if N_g > 1 else oc * C_g)
            total = k.local("total", b[oc] if b is not None else 0.0, "float32")
            windows = g.windows(k, out)
            with ExitStack() as loops:
                channel = loops.enter_context(k.loop("ic", 0, C_g)) if C_g > 1 else 0
                taps, places = g.open_taps(k, loops, windows)
                k.store(total, total[0] + element(x, n, first + channel, *places) * element(w, oc, channel, *taps))
            k.store(y, activate(total[0], c.activation, c.params), n, oc, *out)
    return result


def _transposed(context: Context, c: Convolution) -> Buffer:
    """Gather form: each element of the result sums what reaches it."""
    g = c.geometry(context.shape)
    C_g, N_g = g.C // c.groups, g.N // c.groups
    result = context.result()
    with context.kernel(multiply_adds=g.multiply_adds(True)) as k:
        x = k.read("x", c.x, g.x_shape)
        w = k.read("weight", c.weight)
        b = k.read("bias", c.bias) if c.bias else None
        y = k.write("y", result, g.y_shape)
        with k.grid(**g.grid) as (n, oc, *out):
            total = k.local("total", b[oc] if b is not None else 0.0, "float32")
            first, own = (0, oc) if c.groups == 1 else (tirx.truncdiv(oc, N_g) * C_g, tirx.truncmod(oc, N_g))
            with ExitStack() as loops:
                taps, places = g.open_transposed_taps(k, loops, out)
                channel = loops.enter_context(k.loop("ic", 0, C_g))
                k.store(
                    total,
                    total[0] + element(x, n, first + channel, *places) * element(w, first + channel, own, *taps),
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
