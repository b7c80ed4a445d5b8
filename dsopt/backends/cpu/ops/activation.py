"""Activations: the functions of one tensor that networks put between layers, and the gated ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from dsopt.backends.cpu.builder import Value
from dsopt.backends.cpu.emitter import Emitter
from dsopt.backends.cpu.registry import converter


def relu(cx: Emitter, x: Value) -> Value:
    """Return max(x, 0)."""
    return cx.op("Relu", x) if x.dtype.is_floating_point else cx.op("Max", x, cx.constant(0, x.dtype))


def clip(cx: Emitter, x: Value, low: float | None, high: float | None) -> Value:
    """Return x limited to low..high; None is no limit."""
    if low is not None and high is not None and low > high:
        low = high  # torch takes the upper limit where they cross
    bounds = [None if bound is None else cx.constant(bound, x.dtype) for bound in (low, high)]
    return x if bounds == [None, None] else cx.op("Clip", x, *bounds)


def sigmoid(cx: Emitter, x: Value) -> Value:
    """Return 1 / (1 + exp(-x))."""
    return cx.op("Sigmoid", x)


def hardsigmoid(cx: Emitter, x: Value) -> Value:
    """Return clip(x / 6 + 1 / 2, 0, 1)."""
    return cx.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)


def hardswish(cx: Emitter, x: Value) -> Value:
    """Return x * hardsigmoid(x)."""
    return cx.op("Mul", x, hardsigmoid(cx, x))


def silu(cx: Emitter, x: Value) -> Value:
    """Return x * sigmoid(x)."""
    return cx.op("Mul", x, sigmoid(cx, x))


def gelu(cx: Emitter, x: Value, approximate: str = "none") -> Value:
    """Return x * Phi(x), or its tanh approximation."""
    return cx.op("Gelu", x, approximate=None if approximate == "none" else approximate)


def softplus(cx: Emitter, x: Value, beta: float, threshold: float) -> Value:
    """Return log(1 + exp(beta x)) / beta; x itself where beta x > threshold."""
    if beta == 1 and threshold >= 20:  # there the two differ by less than float32 holds
        return cx.op("Softplus", x)
    scaled = cx.op("Mul", x, cx.constant(beta, x.dtype))
    smooth = cx.op("Div", cx.op("Softplus", scaled), cx.constant(beta, x.dtype))
    return where_above(cx, scaled, threshold, x, smooth)


def where_above(cx: Emitter, x: Value, limit: float, above: Value, otherwise: Value) -> Value:
    """Return `above` where x > limit, else `otherwise`."""
    is_above = cx.op("Greater", x, cx.constant(limit, x.dtype), dtype=torch.bool)
    return cx.op("Where", is_above, above, otherwise, dtype=above.dtype)


ACTIVATIONS: dict[str, Callable[..., Value]] = {
    "none": lambda cx, x: x,
    "relu": relu,
    "relu6": lambda cx, x: clip(cx, x, 0, 6),
    "clamp": clip,
    "leaky_relu": lambda cx, x, slope: cx.op("LeakyRelu", x, alpha=float(slope)),
    "elu": lambda cx, x, alpha: cx.op("Elu", x, alpha=float(alpha)),
    "hardswish": hardswish,
    "hardsigmoid": hardsigmoid,
    "sigmoid": sigmoid,
    "tanh": lambda cx, x: cx.op("Tanh", x),
    "gelu": gelu,
    "gelu_tanh": lambda cx, x: gelu(cx, x, "tanh"),
    "silu": silu,
}
"""The activations of the dsopt:: operators: (emitter, value, *params) -> value."""


def activate(cx: Emitter, x: Value, activation: str, params: Sequence[float]) -> Value:
    """Apply an activation of a fused operator."""
    return ACTIVATIONS[activation](cx, x, *params)


@converter("aten.relu.default")
def convert_relu(cx: Emitter, x: fx.Node) -> Value:
    """Write relu."""
    return relu(cx, cx.value(x))


@converter("aten.relu6.default")
def convert_relu6(cx: Emitter, x: fx.Node) -> Value:
    """Write relu6."""
    return clip(cx, cx.value(x), 0, 6)


@converter("aten.hardtanh.default")
def convert_hardtanh(cx: Emitter, x: fx.Node, min_val: float = -1, max_val: float = 1) -> Value:
    """Write hardtanh."""
    return clip(cx, cx.value(x), min_val, max_val)


@converter("aten.leaky_relu.default")
def convert_leaky_relu(cx: Emitter, x: fx.Node, negative_slope: float = 0.01) -> Value:
    """Write leaky_relu."""
    return cx.op("LeakyRelu", cx.value(x), alpha=float(negative_slope))


@converter("aten.rrelu.default")
def convert_rrelu(
    cx: Emitter, x: fx.Node, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, generator: Any = None
) -> Value:
    """Write rrelu, whose slope is the mean of its limits at inference."""
    return cx.op("LeakyRelu", cx.value(x), alpha=(lower + upper) / 2)


@converter("aten.prelu.default", "aten._prelu_kernel.default")
def convert_prelu(cx: Emitter, x: fx.Node, weight: fx.Node) -> Value:
    """Write prelu: one slope, or one for each channel (axis 1)."""
    slope, rank = cx.value(weight), cx.rank(x)
    if cx.rank(weight) == 1 and rank > 2 and cx.shape(weight)[0] != 1:
        slope = cx.unsqueeze(slope, *range(1, rank - 1))
    elif cx.rank(weight) == 1 and rank == 0:
        slope = cx.squeeze(slope, 0)
    return cx.op("PRelu", cx.value(x), slope)


@converter("aten.elu.default")
def convert_elu(cx: Emitter, x: fx.Node, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Value:
    """Write elu, and celu and selu, which torch may write as elu with scales."""
    value = cx.value(x)
    if input_scale == 1:
        y = cx.op("Elu", value, alpha=float(alpha))
    else:
        scaled = cx.op("Mul", value, cx.constant(input_scale, value.dtype))
        y = where_above(cx, value, 0, value, cx.op("Elu", scaled, alpha=float(alpha)))
    return y if scale == 1 else cx.op("Mul", y, cx.constant(scale, value.dtype))


@converter("aten.celu.default")
def convert_celu(cx: Emitter, x: fx.Node, alpha: float = 1.0) -> Value:
    """Write celu."""
    value = cx.value(x)
    scaled = cx.op("Div", value, cx.constant(alpha, value.dtype))
    return where_above(cx, value, 0, value, cx.op("Elu", scaled, alpha=float(alpha)))


@converter("aten.selu.default")
def convert_selu(cx: Emitter, x: fx.Node) -> Value:
    """Write selu."""
    return cx.op("Selu", cx.value(x), alpha=1.6732632423543772, gamma=1.0507009873554805)


@converter("aten.gelu.default")
def convert_gelu(cx: Emitter, x: fx.Node, *, approximate: str = "none") -> Value:
    """Write gelu."""
    return gelu(cx, cx.value(x), approximate)


@converter("aten.silu.default")
def convert_silu(cx: Emitter, x: fx.Node) -> Value:
    """Write silu."""
    return silu(cx, cx.value(x))


@converter("aten.mish.default")
def convert_mish(cx: Emitter, x: fx.Node) -> Value:
    """Write mish: x tanh(softplus(x))."""
    value = cx.value(x)
    return cx.op("Mul", value, cx.op("Tanh", cx.op("Softplus", value)))


@converter("aten.softplus.default")
def convert_softplus(cx: Emitter, x: fx.Node, beta: float = 1, threshold: float = 20) -> Value:
    """Write softplus."""
    return softplus(cx, cx.value(x), beta, threshold)


@converter("aten.log_sigmoid.default")
def convert_log_sigmoid(cx: Emitter, x: fx.Node) -> Value:
    """Write log(sigmoid(x)) = -softplus(-x)."""
    return cx.op("Neg", cx.op("Softplus", cx.op("Neg", cx.value(x))))


@converter("aten.hardsigmoid.default")
def convert_hardsigmoid(cx: Emitter, x: fx.Node) -> Value:
    """Write hardsigmoid."""
    return hardsigmoid(cx, cx.value(x))


@converter("aten.hardswish.default")
def convert_hardswish(cx: Emitter, x: fx.Node) -> Value:
    """Write hardswish."""
    return hardswish(cx, cx.value(x))


@converter("aten.softshrink.default")
def convert_softshrink(cx: Emitter, x: fx.Node, lambd: float = 0.5) -> Value:
    """Write softshrink."""
    return cx.op("Shrink", cx.value(x), lambd=float(lambd), bias=float(lambd))


@converter("aten.hardshrink.default")
def convert_hardshrink(cx: Emitter, x: fx.Node, lambd: float = 0.5) -> Value:
    """Write hardshrink."""
    return cx.op("Shrink", cx.value(x), lambd=float(lambd), bias=0.0)


@converter("aten.threshold.default")
def convert_threshold(cx: Emitter, x: fx.Node, threshold: float, value: float) -> Value:
    """Write threshold: x where x > threshold, else value."""
    data = cx.value(x)
    return where_above(cx, data, threshold, data, cx.constant(value, data.dtype))


@converter("aten.glu.default")
def convert_glu(cx: Emitter, x: fx.Node, dim: int = -1) -> Value:
    """Write glu: the first half times the sigmoid of the second."""
    axis = cx.axis(dim, cx.rank(x))
    half = cx.fixed(cx.shape(x)[axis], "the gated dim of glu") // 2
    first, second = cx.ops("Split", cx.value(x), cx.vector([half, half]), dtypes=(None, None), axis=axis)
    return cx.op("Mul", first, sigmoid(cx, second))


@converter("aten.softmax.int", "aten._softmax.default", "aten._safe_softmax.default")
def convert_softmax(cx: Emitter, x: fx.Node, dim: int, dtype: Any = None) -> Value:
    """Write softmax along one axis."""
    return _normalised(cx, "Softmax", x, dim)


@converter("aten.log_softmax.int", "aten._log_softmax.default")
def convert_log_softmax(cx: Emitter, x: fx.Node, dim: int, dtype: Any = None) -> Value:
    """Write log_softmax along one axis."""
    return _normalised(cx, "LogSoftmax", x, dim)


def _normalised(cx: Emitter, op_type: str, x: fx.Node, dim: int) -> Value:
    value = cx.cast(cx.value(x), cx.dtype)
    if cx.rank(x) == 0:
        return cx.squeeze(cx.op(op_type, cx.unsqueeze(value, 0), axis=0), 0)
    return cx.op(op_type, value, axis=cx.axis(dim, cx.rank(x)))
