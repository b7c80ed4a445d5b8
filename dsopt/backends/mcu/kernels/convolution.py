"""q_conv on channels-last images: TIR walks over groups of four pixels and their borders, micro-kernels do the inside."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from dsopt.backends.mcu.kernels.assembly import SUPPORT
from dsopt.backends.mcu.kernels.channels_last import with_channels_last
from dsopt.backends.mcu.kernels.depthwise import FILL_PLANE, Planes, channel_kernel, depthwise_stream, plane_kernel
from dsopt.backends.mcu.kernels.gather import FILL, gather_kernel, pixels_kernel, quad_order, window_kernel
from dsopt.backends.mcu.kernels.image import Convolution, Image, read_convolution, read_sum
from dsopt.backends.mcu.kernels.matrix import PIXELS, matrix_kernel, matrix_stream, padded, turn_of
from dsopt.backends.mcu.kernels.stream import Array
from dsopt.backends.mcu.kernels.style import Style
from dsopt.backends.tir.builder import KernelBuilder
from dsopt.backends.tir.program import Buffer, MicroKernel
from dsopt.backends.tir.registry import Context, UnsuitedError
from dsopt.backends.tir.tvm_adapter import Expr, TirBuffer, address, element, tirx

_MOST_MOVES = 64
"""Inputs of a window that are copied one by one, a statement each."""


def convolution(style: Style, context: Context, x: Buffer, *arguments: Any) -> Buffer:
    """Lower q_conv. Raises UnsuitedError for what no kernel here takes."""
    return _lowered(style, context, x, read_convolution(context, x, *arguments))


def convolution_add(style: Style, context: Context, x: Buffer, *arguments: Any) -> Buffer:
    """Lower q_conv_add. Raises UnsuitedError for what no kernel here takes."""
    return _lowered(style, context, x, read_sum(context, x, arguments))


def _lowered(style: Style, context: Context, x: Buffer, found: Convolution) -> Buffer:
    if found.groups == 1:
        return matrix_convolution(style, context, x, found)
    return _depthwise(style, context, x, found)


# ---- all channels of four pixels at a time ----


def matrix_convolution(style: Style, context: Context, x: Buffer, found: Convolution) -> Buffer:
    """Write a convolution as columns times weights."""
    g, layer, x_zero, residual = found.image, found.layer, found.x_zero, found.residual
    by_rows = _takes_rows(g)
    g = g.as_one if by_rows and g.is_pointwise else g
    staged = g.N % 2 != 0 or g.pixels % PIXELS != 0
    order, K = _column_order(g, by_rows, x.channels_last, style)
    if not by_rows and len(order) > _MOST_MOVES:
        raise UnsuitedError(f"it has {g.C} channels, which is no multiple of 4")
    N = g.N + g.N % 2
    weights = np.zeros((N, K), np.int64)
    weights[: g.N, : len(order)] = layer.values.reshape(g.N, -1)[:, order]
    bias, scale = (np.pad(values, (0, N - g.N), mode="edge") for values in (layer.bias, layer.scale))
    kernel = matrix_kernel(K, N, found.store, found.addition, layer.bits, style)
    x = with_channels_last(context, x) if by_rows else x
    stream = context.weight("stream", matrix_stream(weights, replace(layer, values=weights, bias=bias, scale=scale)))
    columns = context.temp("columns", (K // 2, PIXELS, 2), "int16")
    result = context.result(channels_last=True)
    residual = None if residual is None else with_channels_last(context, residual)
    stages = [
        context.temp("stage", (PIXELS, N), found.store.dtype)
        for _ in range((1 if residual is None else 2) if staged else 0)
    ]
    groups = -(-g.pixels // PIXELS)
    with context.kernel(multiply_adds=g.batch * g.pixels * g.N * len(order)) as k:
        k.choice = f"matrix: {PIXELS} pixels x 2 channels in turns of {turn_of(K, style)}, columns "
        k.choice += "by rows" if by_rows else "by windows"
        k.is_glue = by_rows and style.small_loops
        k.use(SUPPORT)
        is_one = by_rows and g.is_pointwise
        source = k.read("x", x, (1, *g.size, g.C) if is_one else x.stored_shape)
        words = k.read("stream", stream)
        added = [] if residual is None else [k.read("residual", residual, (g.batch * g.pixels, g.N))]
        y = k.write("y", result, (g.batch * g.pixels, g.N))
        block = k.scratch("columns", columns)
        rests = [k.scratch("stage", stage) for stage in stages]
        with each_image(k, g, group=groups) as (n, group):
            gather = _Columns(k, g, source, block, x_zero, x.channels_last, n)
            if by_rows and g.is_pointwise:
                count = tirx.min(PIXELS, g.pixels - group * PIXELS) if g.pixels % PIXELS else PIXELS
                k.call(pixels_kernel(g.C // 4), address(block, 0, 0, 0), gather.at(group * PIXELS), count)
            else:
                with k.loop("p", 0, PIXELS) as p, _inside(k, group, p, g.pixels) as pixel:
                    gather.rows(pixel, p) if by_rows else gather.window(pixel, p)
            start = (address(block, 0, 0, 0), address(words, 0, 0))
            before = n * g.pixels
            whole = [address(each, before + group * PIXELS, 0) for each in (y, *added)]
            if not rests:
                k.call(kernel, *start, *whole)
            elif N == g.N:
                with k.when(group < groups - 1):
                    k.call(kernel, *start, *whole)
                with k.when(tirx.EQ(group, groups - 1)):
                    _staged(k, g, kernel, start, rests, (y, *added), before, group)
            else:
                _staged(k, g, kernel, start, rests, (y, *added), before, group)
        if x.channels_last:
            k.may_lie_over(result, x, _lead(g, found.store.bits // 8))
        if residual is not None:
            k.choice += ", residual added in the store"
            k.may_lie_over(result, residual, 0)
    return result


def _takes_rows(g: Image) -> bool:
    """Return whether columns are copied in rows of whole words; else they are copied value by value."""
    return g.C % 4 == 0 or (g.kernel[1] * g.C % 4 == 0 and g.dilation[1] == 1 and not g.leaves(1))


def _column_order(g: Image, by_rows: bool, is_last: bool, style: Style) -> tuple[Array, int]:
    """Return which of the weights (c, ky, kx) belongs to each column, and the number of columns with those that fill up."""
    numbers = np.arange(g.C * math.prod(g.kernel)).reshape(g.C, *g.kernel)
    flat = numbers.transpose(1, 2, 0).reshape(-1) if by_rows or is_last else numbers.reshape(-1)
    if by_rows:
        flat = flat[quad_order(len(flat))]
    return flat, padded(len(flat), style)


@contextmanager
def each_image(k: KernelBuilder, g: Image, **extents: int) -> Iterator[tuple[Expr, ...]]:
    """Open the grid of a kernel over the images of a batch, and in each over `extents`; the number of a single image is 0."""
    if g.batch == 1:
        with k.grid(**extents) as inner:
            yield 0, *inner
        return
    with k.grid(n=g.batch, **extents) as all_:
        yield all_


@contextmanager
def _inside(k: KernelBuilder, group: Expr, p: Expr, pixels: int) -> Iterator[Expr]:
    """Name the pixel, and skip those beyond the last in the last group."""
    pixel = k.let("pixel", group * PIXELS + p)
    if pixels % PIXELS == 0:
        yield pixel
        return
    with k.when(pixel < pixels):
        yield pixel


def _staged(
    k: KernelBuilder, g: Image, kernel: MicroKernel, start: tuple[Expr, Expr], rests: Sequence[TirBuffer],
    images: Sequence[TirBuffer], before: Expr, group: Expr,
) -> None:  # fmt: skip
    """Call a kernel for a group that the image does not have all of.

    rests, images: for the result, then perhaps the residual.  before: the pixels of the images before this one.
    """
    for rest, image in zip(rests[1:], images[1:], strict=True):
        with k.loop("row", 0, PIXELS) as row, _inside(k, group, row, g.pixels) as pixel, k.loop("n", 0, g.N) as n:
            k.store(rest, image[before + pixel, n], row, n)
    k.call(kernel, *start, *(address(each, 0, 0) for each in rests))
    with k.loop("row", 0, PIXELS) as row, _inside(k, group, row, g.pixels) as pixel, k.loop("n", 0, g.N) as n:
        k.store(images[0], rests[0][row, n], before + pixel, n)


class _Columns:
    """Fill the columns of one pixel."""

    def __init__(
        self, k: KernelBuilder, g: Image, x: TirBuffer, columns: TirBuffer, zero: int, is_last: bool, n: Expr
    ) -> None:
        """n: which image of the batch."""
        self.k, self.g, self.x, self.columns, self.zero, self.is_last, self.n = k, g, x, columns, zero, is_last, n

    def _corner(self, pixel: Expr) -> tuple[Expr, Expr]:
        """Return the row and column of the image at which the window of a pixel begins."""
        k, g = self.k, self.g
        i = k.let("i", tirx.truncdiv(pixel, g.out[1])) if g.out[0] > 1 else 0
        j = k.let("j", tirx.truncmod(pixel, g.out[1])) if g.out[0] > 1 else pixel
        return k.let("top", i * g.stride[0] - g.padding[0]), k.let("left", j * g.stride[1] - g.padding[1])

    def at(self, pixel: Expr) -> Expr:
        """Return the address of a pixel of an image that is a row."""
        return self._at(0, pixel)

    def _at(self, row: Expr, column: Expr) -> Expr:
        place = (row, column) if len(self.x.shape) == 4 else (column,)
        return address(self.x, self.n, *place, 0)

    def rows(self, pixel: Expr, p: Expr) -> None:
        """Copy the rows of the window, each in one call where it lies within the image."""
        k, g = self.k, self.g
        top, left = self._corner(pixel)
        row_quads = g.kernel[1] * g.C // 4
        with k.loop("ky", 0, g.kernel[0]) as ky:
            row = k.let("row", top + ky * g.dilation[0])
            target = ky * (row_quads * 2)
            inside = _within(row, g.size[0])
            if g.leaves(0):
                with k.when(tirx.Not(inside)):
                    k.call(FILL, address(self.columns, target, p, 0), self.zero, row_quads)
            with k.when(inside) if g.leaves(0) else _always():
                self._row(row, left, target, p, row_quads)

    def _row(self, row: Expr, left: Expr, target: Expr, p: Expr, row_quads: int) -> None:
        k, g = self.k, self.g
        fits = g.dilation[1] == 1 and g.kernel[1] <= g.size[1]
        whole = tirx.all(left >= 0, left <= g.size[1] - g.kernel[1])
        if fits:
            with k.when(whole) if g.leaves(1) else _always():
                k.call(gather_kernel(row_quads), address(self.columns, target, p, 0), self._at(row, left), row_quads)
            if not g.leaves(1):
                return
        quads = g.C // 4
        with k.when(tirx.Not(whole)) if fits else _always(), k.loop("kx", 0, g.kernel[1]) as kx:
            column = k.let("column", left + kx * g.dilation[1])
            place = address(self.columns, target + kx * (quads * 2), p, 0)
            inside = _within(column, g.size[1])
            if g.leaves(1):
                with k.when(tirx.Not(inside)):
                    k.call(FILL, place, self.zero, quads)
            with k.when(inside) if g.leaves(1) else _always():
                k.call(gather_kernel(quads), place, self._at(row, column), quads)

    def window(self, pixel: Expr, p: Expr) -> None:
        """Copy the window value by value: in one call where it lies within the image."""
        k, g = self.k, self.g
        top, left = self._corner(pixel)
        reach = tuple((g.kernel[dim] - 1) * g.dilation[dim] for dim in (0, 1))
        whole = tirx.all(top >= 0, top < g.size[0] - reach[0], left >= 0, left < g.size[1] - reach[1])
        leaves = g.leaves(0) or g.leaves(1)
        if g.size[0] <= reach[0] or g.size[1] <= reach[1]:  # no window lies within the image
            self._border(top, left, p)
            return
        with k.when(whole) if leaves else _always():
            start = self._at(top, left) if self.is_last else address(self.x, self.n, 0, *self._place(top, left))
            k.call(window_kernel(self._offsets()), address(self.columns, 0, p, 0), start)
        if leaves:
            with k.when(tirx.Not(whole)):
                self._border(top, left, p)

    def _place(self, row: Expr, column: Expr) -> tuple[Expr, ...]:
        return (row, column) if len(self.x.shape) == 4 else (column,)

    def _offsets(self) -> list[int]:
        g, (_, W) = self.g, self.g.size
        rows = [[ky * g.dilation[0], kx * g.dilation[1]] for ky in range(g.kernel[0]) for kx in range(g.kernel[1])]
        if self.is_last:
            return [(a * W + b) * g.C + c for a, b in rows for c in range(g.C)]
        return [c * g.size[0] * W + a * W + b for c in range(g.C) for a, b in rows]

    def _border(self, top: Expr, left: Expr, p: Expr) -> None:
        """Copy value by value, with the zero point in place of what lies outside."""
        k, g = self.k, self.g
        KH, KW = g.kernel
        extents = {"ky": KH, "kx": KW, "c": g.C} if self.is_last else {"c": g.C, "ky": KH, "kx": KW}
        (first, a), (second, b), (third, d) = extents.items()
        with k.loop(first, 0, a) as one, k.loop(second, 0, b) as two, k.loop(third, 0, d) as three:
            named = dict(zip(extents, (one, two, three), strict=True))
            row = k.let("row", top + named["ky"] * g.dilation[0])
            column = k.let("column", left + named["kx"] * g.dilation[1])
            number = k.let("number", (one * b + two) * d + three)
            place = self._place(row, column)
            value = (
                element(self.x, self.n, *place, named["c"])
                if self.is_last
                else element(self.x, self.n, named["c"], *place)
            )
            inside = tirx.all(_within(row, g.size[0]), _within(column, g.size[1]))
            chosen = tirx.if_then_else(inside, tirx.Cast("int16", value), tirx.IntImm("int16", self.zero))
            k.store(self.columns, chosen, tirx.truncdiv(number, 2), p, tirx.truncmod(number, 2))


def _within(place: Expr, size: int) -> Expr:
    return tirx.all(place >= 0, place < size)


@contextmanager
def _always() -> Iterator[None]:
    yield


def _lead(g: Image, size: int) -> int:
    """Return by how many bytes the result must begin before the input so that no pixel is overwritten before it is read.

    size: bytes of a result.  A group of pixels is read whole before it is written; what the groups after it read first is compared
    with where it ends.
    """
    pixel = np.arange(g.pixels)
    i, j = pixel // g.out[1], pixel % g.out[1]
    row = np.maximum(i * g.stride[0] - g.padding[0], 0)
    column = np.maximum(j * g.stride[1] - g.padding[1], 0)
    image = np.arange(g.batch)[:, None]
    reads = (image * g.input_elements + (row * g.size[1] + column) * g.C).reshape(-1)
    first = np.minimum.accumulate(reads[::-1])[::-1]
    ends = (image * g.pixels + np.minimum(np.arange(PIXELS, g.pixels + PIXELS, PIXELS), g.pixels)).reshape(-1)[:-1]
    return int(max((ends * g.N * size - first[ends]).max(initial=0), 0))


# ---- channel by channel ----


def is_first(n: Expr, step: Expr) -> Expr:
    """Return whether this is the first step of the first image, at which borders are filled that all others leave alone."""
    return tirx.EQ(step, 0) if isinstance(n, int) else tirx.all(tirx.EQ(n, 0), tirx.EQ(step, 0))


def lies_over_itself(g: Image) -> bool:
    """Return whether each channel may be written over itself, and over no image that is still to come."""
    return g.N == g.C and (g.batch == 1 or g.pixels <= g.size[0] * g.size[1])


def _depthwise(style: Style, context: Context, x: Buffer, found: Convolution) -> Buffer:
    g, layer = found.image, found.layer
    planes = Planes(**vars(g))
    x = with_channels_last(context, x)
    stream = context.weight("stream", depthwise_stream(layer.values[:, 0], layer))
    plane = context.temp("plane", (planes.elements,), "int16")
    result = context.result(channels_last=True)
    with context.kernel(multiply_adds=g.batch * g.pixels * g.N * math.prod(g.kernel)) as k:
        k.choice = "depthwise: channel by channel" + (", two results at a time" if planes.is_fast else "")
        k.is_glue = style.small_loops
        k.use(SUPPORT)
        source, words = k.read("x", x, (g.batch, *g.size, g.C)), k.read("stream", stream)
        y = k.write("y", result, (g.batch, *g.out, g.N))
        block = k.scratch("plane", plane)
        with each_image(k, g, c=g.N) as (n, c):
            with k.when(is_first(n, c)):
                k.call(FILL_PLANE, address(block, 0), found.x_zero, planes.elements)
            inner = g.padding[0] * planes.pitch + g.padding[1]
            k.call(
                plane_kernel(planes),
                address(block, inner),
                address(source, n, 0, 0, c if g.N == g.C else tirx.truncdiv(c, g.N // g.C)),
            )
            k.call(channel_kernel(planes, found.store), address(block, 0), address(words, c, 0), address(y, n, 0, 0, c))
        if lies_over_itself(g):
            k.may_lie_over(result, x, 0, exact=True)
    return result
