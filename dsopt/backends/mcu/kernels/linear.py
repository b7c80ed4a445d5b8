"""q_linear: one row is a vector times a matrix, several are a convolution of one pixel each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from dsopt.backends.mcu.kernels.assembly import SUPPORT
from dsopt.backends.mcu.kernels.convolution import matrix_convolution
from dsopt.backends.mcu.kernels.dense import CHANNELS, dense_kernel, dense_stream, turn_of, widen_kernel
from dsopt.backends.mcu.kernels.image import Convolution, Image
from dsopt.backends.mcu.kernels.matrix import PIXELS
from dsopt.backends.mcu.kernels.store import Store
from dsopt.backends.mcu.kernels.stream import Weights, read_weights
from dsopt.backends.mcu.kernels.style import Style
from dsopt.backends.tir.program import Buffer
from dsopt.backends.tir.registry import Context, UnsuitedError
from dsopt.backends.tir.tvm_adapter import address, tirx


def read_linear(
    context: Context, x: Buffer, weight: Buffer, bias: Buffer | None, multiplier: Buffer, shift: Buffer, factors: Buffer | None,
    group: int, weight_shape: list[int], weight_bits: int, x_zero: int, y_zero: int, low: int, high: int, bits: int, wide: bool,
) -> tuple[Weights, int, Store]:  # fmt: skip
    """Return the layer, values (N, K), the zero point of its input, and its store. Raises UnsuitedError for what no kernel takes."""
    if x.dtype != "int8":
        raise UnsuitedError("its input has 16 bits")
    if x.channels_last:
        raise UnsuitedError("its input is an image")
    layer = read_weights(
        context, weight, weight_shape, weight_bits, factors, bias, multiplier, shift, x_zero, wide, bits
    )
    return layer, x_zero, Store(y_zero, low, high, layer.lift, bits)


def linear(style: Style, context: Context, x: Buffer, *arguments: Any) -> Buffer:
    """Lower q_linear. Raises UnsuitedError for what no kernel here takes."""
    layer, x_zero, store = read_linear(context, x, *arguments)
    M = x.elements // layer.values.shape[1]
    if M < PIXELS:
        return _dense(style, context, x, M, layer, store)
    return by_pixels(context, x, layer, x_zero, store, partial(matrix_convolution, style))


def by_pixels(
    context: Context, x: Buffer, layer: Weights, x_zero: int, store: Store, lower: Callable[[Context, Buffer, Convolution], Buffer]
) -> Buffer:  # fmt: skip
    """Lower a product of several rows as a convolution of one pixel each, by the lowering of such a one."""
    session, (N, K) = context.session, layer.values.shape
    M, one = x.elements // K, (1, 1)
    rows = session.add_buffer(f"{x.name}_rows", (1, K, M), x.dtype, x.name, True)
    inner = Context(session, context.operator, context.label, [((1, N, M), context.dtype)], False)
    image = Image(K, N, (1, M), (1, M), one, one, (0, 0), one)
    weights = replace(layer, values=layer.values.reshape(N, K, 1, 1))
    y = lower(inner, rows, Convolution(image, weights, 1, x_zero, store))
    return session.add_buffer(f"{y.name}_rows", context.shape, y.dtype, y.name)


def _dense(style: Style, context: Context, x: Buffer, M: int, layer: Weights, store: Store) -> Buffer:
    N, K = layer.values.shape
    inputs = 32 // layer.bits  # of a word of weights
    wide_N, wide_K = -(-N // CHANNELS) * CHANNELS, -(-K // inputs) * inputs
    weights = np.zeros((wide_N, wide_K), np.int64)
    weights[:N, :K] = layer.values
    bias, scale = (np.pad(values, (0, wide_N - N), mode="edge") for values in (layer.bias, layer.scale))
    kernel, quads = dense_kernel(wide_K, wide_N, store, layer.bits, style), K // 4
    stream = context.weight("stream", dense_stream(weights, replace(layer, values=weights, bias=bias, scale=scale)))
    widened = context.temp("wide", (wide_K,), "int16")
    stage = context.temp("stage", (wide_N,), store.dtype) if wide_N != N else None
    result = context.result()
    with context.kernel(multiply_adds=M * N * K) as k:
        k.choice = f"dense: 4 channels at a time in turns of {turn_of(wide_K, layer.bits, style)}"
        k.is_glue = style.small_loops
        k.use(SUPPORT)
        source, words = k.read("x", x, (M, K)), k.read("stream", stream)
        y = k.write("y", result, (M, N))
        block = k.scratch("wide", widened)
        rest = k.scratch("stage", stage) if stage is not None else None
        with k.grid(m=M) as (m,):
            if quads:
                k.call(widen_kernel(quads), address(block, 0), address(source, m, 0), quads)
            for extra in range(K % 4):  # in the order (0, 2, 1) of what is left of four
                k.store(block, tirx.Cast("int16", source[m, 4 * quads + extra]), 4 * quads + (0, 2, 1)[extra])
            k.call(
                kernel,
                address(block, 0),
                address(words, 0, 0),
                address(rest, 0) if rest is not None else address(y, m, 0),
            )
            if rest is not None:
                with k.loop("n", 0, N) as n:
                    k.store(y, rest[n], m, n)
        if M == 1:
            k.may_lie_over(result, x, 0)
            # What is read of x is always behind what is written: 2 bytes for each of its bytes, from so far before it.
            k.may_lie_over(widened, x, wide_K + (4 if K % 4 else 0))
    return result
