"""q_conv and q_linear for cores with MVE: TIR walks over rows of the result and their borders, micro-kernels do the inside."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from dsopt.backends.mcu.kernels.assembly import SUPPORT
from dsopt.backends.mcu.kernels.channels_last import with_channels_last
from dsopt.backends.mcu.kernels.convolution import each_image, is_first, lies_over_itself
from dsopt.backends.mcu.kernels.helium.copy import COPY, FILL, FILL_COLUMNS, blocks_kernel, spread_kernel
from dsopt.backends.mcu.kernels.helium.dense import dense_kernel, dense_stream, turn_of
from dsopt.backends.mcu.kernels.helium.depthwise import channel_kernel, depthwise_stream, lines_kernel, lines_of
from dsopt.backends.mcu.kernels.helium.lanes import BYTES, LANES
from dsopt.backends.mcu.kernels.helium.matrix import INSTRUCTIONS, PIXELS, Runs, conv_kernel, conv_stream, is_straight
from dsopt.backends.mcu.kernels.helium.matrix import turn_of as vector_turn
from dsopt.backends.mcu.kernels.image import Convolution, Image, read_convolution, read_sum
from dsopt.backends.mcu.kernels.linear import by_pixels, read_linear
from dsopt.backends.mcu.kernels.store import Store
from dsopt.backends.mcu.kernels.stream import Weights
from dsopt.backends.mcu.kernels.style import Style
from dsopt.backends.tir.builder import KernelBuilder
from dsopt.backends.tir.program import Buffer, MicroKernel
from dsopt.backends.tir.registry import Context, UnsuitedError
from dsopt.backends.tir.tvm_adapter import Expr, TirBuffer, address, tirx

_MOST_PLANES = 8
"""Up to so many channels, each is copied on its own, eight values at a time."""


def convolution(style: Style, context: Context, x: Buffer, *arguments: Any) -> Buffer:
    """Lower q_conv. Raises UnsuitedError for what no kernel here takes."""
    return _lowered(style, context, x, read_convolution(context, x, *arguments))


def convolution_add(style: Style, context: Context, x: Buffer, *arguments: Any) -> Buffer:
    """Lower q_conv_add. Raises UnsuitedError for what no kernel here takes."""
    return _lowered(style, context, x, read_sum(context, x, arguments))


def linear(style: Style, context: Context, x: Buffer, *arguments: Any) -> Buffer:
    """Lower q_linear. Raises UnsuitedError for what no kernel here takes."""
    layer, x_zero, store = read_linear(context, x, *arguments)
    if store.bits != 8:
        raise UnsuitedError("its values have 16 bits")
    if x.elements // layer.values.shape[1] < PIXELS:
        return _dense(style, context, x, layer, store)
    return by_pixels(context, x, layer, x_zero, store, partial(_matrix, style))


def _lowered(style: Style, context: Context, x: Buffer, found: Convolution) -> Buffer:
    return _matrix(style, context, x, found) if found.groups == 1 else _depthwise(style, context, x, found)


# ---- all channels of three pixels at a time ----


def _runs(g: Image) -> Runs:
    """Return where the inputs of a pixel are: in the image, or in the columns of the rows that a row of results is made of."""
    height = g.kernel[0] if _has_columns(g) else 1
    size, is_open = height * g.C, _has_columns(g) or g.C % BYTES == 0
    if g.dilation[1] == 1:
        return Runs(1, g.kernel[1] * size, 0, g.stride[1] * size, is_open)
    return Runs(g.kernel[1], size, g.dilation[1] * size, g.stride[1] * size, is_open)


def _has_columns(g: Image) -> bool:
    """Return whether rows are copied, so that a window has its columns one behind the other and may reach over the border."""
    return g.kernel[0] > 1 or g.leaves(0) or g.leaves(1)


def _column_count(g: Image) -> int:
    reach = (g.out[1] - 1) * g.stride[1] + (g.kernel[1] - 1) * g.dilation[1] + 1
    return max(g.padding[1] + g.size[1], reach)


def _matrix(style: Style, context: Context, x: Buffer, found: Convolution) -> Buffer:
    g, residual = found.image, found.residual
    g = g.as_one if g.is_pointwise else g
    runs, N = _runs(g), -(-g.N // LANES) * LANES
    if N != g.N and residual is not None:
        raise UnsuitedError(f"its residual needs channels in groups of {LANES}")
    layer = _filled(found.layer, N)
    lines, length = _lines(g)
    groups = _groups(length, style)
    kernels = [conv_kernel(runs, most, N, found.store, found.addition, layer.bits, style) for most, *_ in groups]
    copied = _has_columns(g)
    if not (copied and g.C <= _MOST_PLANES):
        x = with_channels_last(context, x)
    copier = _copier(g, x.channels_last) if copied else None
    by_column = layer.values.transpose(0, 3, 2, 1).reshape(N, runs.rows, runs.length)
    stream = context.weight("stream", conv_stream(by_column, layer, runs))
    columns = context.temp("columns", (_column_count(g) * g.kernel[0] * g.C + BYTES,), "int8") if copied else None
    result = context.result(channels_last=True)
    residual = None if residual is None else with_channels_last(context, residual)
    stage = context.temp("stage", (PIXELS, N), "int8") if N != g.N else None
    with context.kernel(multiply_adds=g.batch * g.pixels * g.N * g.C * math.prod(g.kernel)) as k:
        k.choice = f"vectors: {' and '.join(str(most) for most, *_ in groups)} pixels x 4 channels"
        if not is_straight(runs, style):
            k.choice += f" in turns of {vector_turn(runs, layer.bits, style)}"
        k.choice += ", rows copied" if copied else ""
        k.is_glue = style.small_loops
        k.use(SUPPORT)
        source, words = k.read("x", x, (x.elements,)), k.read("stream", stream)
        added = [] if residual is None else [k.read("residual", residual, (g.batch * g.pixels, g.N))]
        y = k.write("y", result, (g.batch * g.pixels, g.N))
        block = k.scratch("columns", columns) if columns is not None else None
        rest = k.scratch("stage", stage) if stage is not None else None
        with each_image(k, g, i=lines) as (n, i):
            before = n * g.input_elements
            if copier is not None:
                _copy_rows(k, g, copier, x.channels_last, source, block, (n, i), found.x_zero)
                inputs, start = block, 0
            else:
                inputs, start = source, before + i * (g.stride[0] * g.size[1] * g.C)
            for kernel, (most, begin, count) in zip(kernels, groups, strict=True):
                with k.loop("group", 0, -(-count // most)) as group:
                    pixels = k.let("pixels", tirx.min(most, count - group * most)) if count % most else most
                    pixel = k.let("pixel", begin + group * most)
                    place = address(inputs, start + pixel * runs.step)
                    first = k.let("first", n * g.pixels + i * length + pixel)
                    if rest is None:
                        outputs = [address(each, first, 0) for each in (y, *added)]
                        k.call(kernel, place, address(words, 0, 0), outputs[0], pixels, *outputs[1:])
                    else:
                        k.call(kernel, place, address(words, 0, 0), address(rest, 0, 0), pixels)
                        with k.loop("row", 0, pixels) as row:
                            k.call(COPY, address(y, first + row, 0), address(rest, row, 0), g.N)
        if x.channels_last:
            k.may_lie_over(result, x, _lead(g, runs, groups))
        if residual is not None:
            k.choice += ", residual added in the store"
            k.may_lie_over(result, residual, 0)
    return result


def _groups(length: int, style: Style) -> list[tuple[int, int, int]]:
    """Share the pixels of a row between kernels of three and of two at a time, if that pays: (most at a time, first, count)."""
    threes = (length // PIXELS if length % PIXELS != 1 else length // PIXELS - 1) * PIXELS
    whole = -(-length // PIXELS) * INSTRUCTIONS[PIXELS]
    shared = threes // PIXELS * INSTRUCTIONS[PIXELS] + (length - threes) // 2 * INSTRUCTIONS[2]
    if length < 2 or shared > (1 - style.least_saving) * whole:
        return [(PIXELS, 0, length)]
    return [group for group in ((PIXELS, 0, threes), (2, threes, length - threes)) if group[2]]


def _lines(g: Image) -> tuple[int, int]:
    """Return the rows of results and the pixels of each; all pixels are one row where rows do not matter."""
    return (1, g.pixels) if g.is_pointwise else g.out


def _copier(g: Image, is_last: bool) -> MicroKernel:
    """Return the function that copies a row of an image, or of one of its planes, into the columns."""
    step = g.kernel[0] * g.C
    if g.C <= _MOST_PLANES:
        return spread_kernel(g.C if is_last else 1, step)
    return blocks_kernel(g.C, step)


def _copy_rows(
    k: KernelBuilder, g: Image, copier: MicroKernel, is_last: bool, source: TirBuffer, columns: TirBuffer,
    place: tuple[Expr, Expr], zero: int,
) -> None:  # fmt: skip
    """Fill the columns with the rows that a row of results is made of. place: the image, and the row."""
    (n, i), step, (H, W) = place, g.kernel[0] * g.C, g.size
    before = n * g.input_elements
    with k.when(is_first(n, i)):
        k.call(FILL, address(columns, 0), zero, _column_count(g) * step)
    with k.loop("ky", 0, g.kernel[0]) as ky:
        row = k.let("row", i * g.stride[0] - g.padding[0] + ky * g.dilation[0])
        inside = tirx.all(row >= 0, row < H)
        target = g.padding[1] * step + ky * g.C
        with k.when(inside):
            if g.C > _MOST_PLANES:
                k.call(copier, address(columns, target), address(source, before + row * (W * g.C)), W)
            else:
                with k.loop("c", 0, g.C) as c:
                    start = row * (W * g.C) + c if is_last else c * (H * W) + row * W
                    k.call(copier, address(columns, target + c), address(source, before + start), W)
        if g.leaves(0):
            with k.when(tirx.Not(inside)):
                k.call(FILL_COLUMNS, address(columns, target), zero, g.C, step, W)


def _filled(layer: Weights, N: int) -> Weights:
    """Return the layer with channels of zeros up to N."""
    more = N - len(layer.values)
    values = np.pad(layer.values, ((0, more), *((0, 0),) * (layer.values.ndim - 1)))
    bias, scale = (np.pad(each, (0, more), mode="edge") for each in (layer.bias, layer.scale))
    return replace(layer, values=values, bias=bias, scale=scale)


def _lead(g: Image, runs: Runs, groups: list[tuple[int, int, int]]) -> int:
    """Return by how many bytes the result must begin before the input so that no byte is overwritten before it is read.

    Rows that are copied are read before the results of their row are written; else, a group of pixels is written while it is read.
    """
    lines, length = _lines(g)
    n, i = np.arange(g.batch)[:, None], np.arange(lines)
    if _has_columns(g):
        reads = (n * g.input_elements + np.maximum(i * g.stride[0] - g.padding[0], 0) * g.size[1] * g.C).reshape(-1)
        needed = np.minimum.accumulate(reads[::-1])[::-1]
        ends = np.arange(1, len(needed)) * length * g.N
        return int(max((ends - needed[1:]).max(initial=0), 0))
    first = np.array([begin + each for most, begin, count in groups for each in range(0, count, most)])
    starts = (n * g.input_elements + i * (g.stride[0] * g.size[1] * g.C))[..., None] + first * runs.step
    ends = ((n * lines + i) * length)[..., None] * g.N + np.append(first[1:], length) * g.N
    return int(max((ends - starts).max(), 0))


# ---- few vectors ----


def _dense(style: Style, context: Context, x: Buffer, layer: Weights, store: Store) -> Buffer:
    real_N, K = layer.values.shape
    M, N = x.elements // K, -(-real_N // LANES) * LANES
    layer = _filled(layer, N)
    kernel = dense_kernel(K, N, store, layer.bits, style)
    stream = context.weight("stream", dense_stream(layer.values, layer))
    stage = context.temp("stage", (N,), "int8") if real_N != N else None
    result = context.result()
    with context.kernel(multiply_adds=M * real_N * K) as k:
        k.choice = f"vectors: 4 channels in turns of {turn_of(K, layer.bits, style)}"
        k.is_glue = style.small_loops
        k.use(SUPPORT)
        source, words = k.read("x", x, (M, K)), k.read("stream", stream)
        y = k.write("y", result, (M, real_N))
        rest = k.scratch("stage", stage) if stage is not None else None
        with k.grid(m=M) as (m,):
            target = address(rest, 0) if rest is not None else address(y, m, 0)
            k.call(kernel, address(source, m, 0), address(words, 0, 0), target)
            if rest is not None:
                k.call(COPY, address(y, m, 0), address(rest, 0), real_N)
        if M == 1 and rest is not None:
            k.may_lie_over(result, x, 0)
    return result


# ---- channel by channel ----


def _depthwise(style: Style, context: Context, x: Buffer, found: Convolution) -> Buffer:
    g, layer = found.image, replace(found.layer, values=found.layer.values[:, 0])
    lines = lines_of(g.N, g.C, g.size, g.out, g.kernel, g.stride, g.padding)
    if not lines.is_fast or g.dilation != (1, 1):
        raise UnsuitedError(f"its windows have {g.kernel[0]} x {g.kernel[1]} values")
    x = with_channels_last(context, x)
    stream = context.weight("stream", depthwise_stream(layer.values, layer, lines))
    plane = context.temp("plane", (lines.plane_bytes,), "int8")
    strip = context.temp("strip", (lines.strip_bytes,), "int8")
    result = context.result(channels_last=True)
    with context.kernel(multiply_adds=g.batch * g.pixels * g.N * math.prod(g.kernel)) as k:
        k.choice = "vectors: depthwise, channel by channel, a window in a load"
        k.is_glue = style.small_loops
        k.use(SUPPORT)
        source, words = k.read("x", x, (x.elements,)), k.read("stream", stream)
        y = k.write("y", result, (result.elements,))
        block, room = k.scratch("plane", plane), k.scratch("strip", strip)
        with each_image(k, g, c=g.N) as (n, c):
            with k.when(is_first(n, c)):
                k.call(FILL, address(block, 0), found.x_zero, lines.plane_bytes)
            inner = lines.padding[0] * lines.columns + lines.padding[1]
            k.call(
                lines_kernel(lines),
                address(block, inner),
                address(source, n * g.input_elements + (c if g.N == g.C else tirx.truncdiv(c, g.N // g.C))),
            )
            k.call(
                channel_kernel(lines, found.store),
                address(block, 0),
                address(words, c, 0),
                address(y, n * (g.pixels * g.N) + c),
                address(room, 0),
            )
        if lies_over_itself(g):
            k.may_lie_over(result, x, 0, exact=True)
    return result
