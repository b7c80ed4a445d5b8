"""Batch, layer, group, instance and RMS normalisation: mean and variance in two passes over each row, as torch defines them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dsopt.backends.tir.builder import KernelBuilder
from dsopt.backends.tir.ops.activation import number
from dsopt.backends.tir.program import Buffer
from dsopt.backends.tir.registry import Context, RefusedError, lowering
from dsopt.backends.tir.tvm_adapter import Expr, TirBuffer, element, tirx


def _need_float(x: Buffer) -> None:
    if x.dtype != "float32":
        raise RefusedError(f"a normalisation of {x.dtype}", "convert the input to float32")


@lowering("aten.batch_norm.default")
def _batch_norm(
    context: Context, x: Buffer, weight: Buffer | None, bias: Buffer | None, mean: Buffer | None, variance: Buffer | None,
    training: bool, momentum: float, epsilon: float, cudnn: bool,
) -> Buffer:  # fmt: skip
    if training or mean is None or variance is None:
        raise RefusedError(
            "a batch normalisation that uses the statistics of the batch", "export the model in eval mode"
        )
    return _affine_by_channel(context, x, weight, bias, mean, variance, epsilon)


@lowering("aten._native_batch_norm_legit_no_training.default", "aten._batch_norm_no_update.default")
def _batch_norm_no_training(
    context: Context, x: Buffer, weight: Buffer | None, bias: Buffer | None, mean: Buffer, variance: Buffer, momentum: float,
    epsilon: float,
) -> tuple[Buffer | None, ...]:  # fmt: skip
    return (_affine_by_channel(context, x, weight, bias, mean, variance, epsilon), None, None, None)


def _affine_by_channel(
    context: Context,
    x: Buffer,
    weight: Buffer | None,
    bias: Buffer | None,
    mean: Buffer,
    variance: Buffer,
    epsilon: float,
) -> Buffer:
    _need_float(x)
    B, C = x.shape[0], x.shape[1]
    inner = x.elements // (B * C)
    result = context.result()
    with context.kernel(multiply_adds=x.elements) as k:
        source = k.read("x", x, (B, C, inner))
        w = k.read("weight", weight) if weight else None
        b = k.read("bias", bias) if bias else None
        mu, var = k.read("mean", mean), k.read("variance", variance)
        y = k.write("y", result, (B, C, inner))
        with k.grid(n=B, c=C) as (n, c):
            root = tirx.sqrt(var[c] + number(epsilon))
            scale = k.let("scale", (w[c] if w is not None else number(1.0)) / root, "float32")
            shift = b[c] if b is not None else None
            with k.loop("i", 0, inner) as i:
                value = (source[n, c, i] - mu[c]) * scale
                k.store(y, value if shift is None else value + shift, n, c, i)
    return result


def _moments(k: KernelBuilder, x: TirBuffer, row: Sequence[Expr], size: int, epsilon: float) -> tuple[Expr, Expr]:
    """Name the mean and 1 / sqrt(variance + epsilon) of x[*row, 0..size]."""
    total = k.local("total", 0.0, "float32")
    with k.loop("i", 0, size) as i:
        k.store(total, total[0] + element(x, *row, i))
    mean = k.let("mean", total[0] * number(1.0 / size), "float32")
    squares = k.local("squares", 0.0, "float32")
    with k.loop("i", 0, size) as i:
        centred = k.let("centred", element(x, *row, i) - mean, "float32")
        k.store(squares, squares[0] + centred * centred)
    scale = k.let("scale", number(1.0) / tirx.sqrt(squares[0] * number(1.0 / size) + number(epsilon)), "float32")
    return mean, scale


@lowering("aten.layer_norm.default")
def _layer_norm(
    context: Context, x: Buffer, normalized: list[int], weight: Buffer | None, bias: Buffer | None, epsilon: float, cudnn: bool
) -> Buffer:  # fmt: skip
    return _layer(context, x, normalized, weight, bias, epsilon)


@lowering("aten.native_layer_norm.default")
def _native_layer_norm(
    context: Context, x: Buffer, normalized: list[int], weight: Buffer | None, bias: Buffer | None, epsilon: float
) -> tuple[Buffer | None, ...]:
    return (_layer(context, x, normalized, weight, bias, epsilon), None, None)


def _layer(
    context: Context, x: Buffer, normalized: list[int], weight: Buffer | None, bias: Buffer | None, epsilon: float
) -> Buffer:
    _need_float(x)
    size = math.prod(normalized)
    rows = x.elements // size
    result = context.result()
    with context.kernel(multiply_adds=2 * x.elements) as k:
        source = k.read("x", x, (rows, size))
        w = k.read("weight", weight, (size,)) if weight else None
        b = k.read("bias", bias, (size,)) if bias else None
        y = k.write("y", result, (rows, size))
        with k.grid(row=rows) as (row,):
            mean, scale = _moments(k, source, (row,), size, epsilon)
            with k.loop("i", 0, size) as i:
                value = (source[row, i] - mean) * scale
                value = value * w[i] if w is not None else value
                k.store(y, value + b[i] if b is not None else value, row, i)
    return result


@lowering("aten.rms_norm.default")
def _rms_norm(
    context: Context, x: Buffer, normalized: list[int], weight: Buffer | None, epsilon: float | None
) -> Buffer:
    _need_float(x)
    size = math.prod(normalized)
    rows = x.elements // size
    guard = 1.1920928955078125e-07 if epsilon is None else epsilon  # torch takes the machine epsilon of float32
    result = context.result()
    with context.kernel(multiply_adds=2 * x.elements) as k:
        source, y = k.read("x", x, (rows, size)), k.write("y", result, (rows, size))
        w = k.read("weight", weight, (size,)) if weight else None
        with k.grid(row=rows) as (row,):
            squares = k.local("squares", 0.0, "float32")
            with k.loop("i", 0, size) as i:
                k.store(squares, squares[0] + source[row, i] * source[row, i])
            scale = k.let("scale", number(1.0) / tirx.sqrt(squares[0] * number(1.0 / size) + number(guard)), "float32")
            with k.loop("i", 0, size) as i:
                value = source[row, i] * scale
                k.store(y, value * w[i] if w is not None else value, row, i)
    return result


def _grouped(
    context: Context, x: Buffer, groups: int, weight: Buffer | None, bias: Buffer | None, epsilon: float
) -> Buffer:
    """Normalise each group of channels of each sample; scale and shift by channel."""
    _need_float(x)
    B, C = x.shape[0], x.shape[1]
    inner, C_g = x.elements // (B * C), C // groups
    result = context.result()
    with context.kernel(multiply_adds=2 * x.elements) as k:
        source, y = k.read("x", x, (B, groups, C_g * inner)), k.write("y", result, (B, groups, C_g * inner))
        w = k.read("weight", weight, (groups, C_g)) if weight else None
        b = k.read("bias", bias, (groups, C_g)) if bias else None
        with k.grid(n=B, g=groups) as (n, g):
            mean, scale = _moments(k, source, (n, g), C_g * inner, epsilon)
            with k.loop("c", 0, C_g) as c, k.loop("j", 0, inner) as j:
                value = (source[n, g, c * inner + j] - mean) * scale
                value = value * w[g, c] if w is not None else value
                k.store(y, value + b[g, c] if b is not None else value, n, g, c * inner + j)
    return result


@lowering("aten.group_norm.default")
def _group_norm(
    context: Context, x: Buffer, groups: int, weight: Buffer | None, bias: Buffer | None, epsilon: float, cudnn: bool
) -> Buffer:
    return _grouped(context, x, groups, weight, bias, epsilon)


@lowering("aten.instance_norm.default")
def _instance_norm(
    context: Context, x: Buffer, weight: Buffer | None, bias: Buffer | None, mean: Buffer | None, variance: Buffer | None,
    use_input_stats: bool, momentum: float, epsilon: float, cudnn: bool,
) -> Buffer:  # fmt: skip
    if not use_input_stats:
        assert mean is not None
        assert variance is not None
        return _affine_by_channel(context, x, weight, bias, mean, variance, epsilon)
    return _grouped(context, x, x.shape[1], weight, bias, epsilon)
