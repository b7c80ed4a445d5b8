"""Activations as expressions of one float32 value: used on their own and in the store of a convolution or linear layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from dsopt.backends.tir.tvm_adapter import Expr, constant, tirx


def number(value: float) -> Expr:
    """Return a float32 immediate."""
    return constant(value, "float32")


def relu(x: Expr) -> Expr:
    """max(x, 0)."""
    return tirx.max(x, number(0.0))


def clamp(x: Expr, low: float | None, high: float | None) -> Expr:
    """Limit x to low..high; None is no limit."""
    x = x if low is None else tirx.max(x, number(low))
    return x if high is None else tirx.min(x, number(high))


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + e^-x); e^-x may overflow to infinity, which gives 0."""
    return number(1.0) / (number(1.0) + tirx.exp(number(0.0) - x))


def elu(x: Expr, alpha: float, scale: float = 1.0, input_scale: float = 1.0) -> Expr:
    """scale max(0, x) + scale alpha (e^(input_scale x) - 1) for x <= 0."""
    below = number(scale * alpha) * (tirx.exp(x * number(input_scale)) - number(1.0))
    return tirx.Select(x > number(0.0), x * number(scale), below)


def softplus(x: Expr, beta: float = 1.0, threshold: float = 20.0) -> Expr:
    """log(1 + e^(beta x)) / beta, and x itself above the threshold; written as max(x, 0) + log(1 + e^-|x|) against overflow."""
    z = x * number(beta)
    stable = (tirx.max(z, number(0.0)) + tirx.log1p(tirx.exp(number(0.0) - tirx.abs(z)))) * number(1.0 / beta)
    return tirx.Select(z > number(threshold), x, stable)


def gelu(x: Expr) -> Expr:
    """x times the normal distribution function of x."""
    return number(0.5) * x * (number(1.0) + tirx.erf(x * number(math.sqrt(0.5))))


def gelu_tanh(x: Expr) -> Expr:
    """Hendrycks and Gimpel 2016, section 2: the tanh approximation."""
    inner = number(math.sqrt(2.0 / math.pi)) * (x + number(0.044715) * x * x * x)
    return number(0.5) * x * (number(1.0) + tirx.tanh(inner))


def hardsigmoid(x: Expr) -> Expr:
    """clamp(x / 6 + 1/2, 0, 1), as torch rounds it."""
    return clamp(x + number(3.0), 0.0, 6.0) * number(1.0 / 6.0)


ACTIVATIONS: dict[str, Callable[..., Expr]] = {
    "none": lambda x: x,
    "relu": relu,
    "relu6": lambda x: clamp(x, 0.0, 6.0),
    "clamp": clamp,
    "leaky_relu": lambda x, slope: tirx.Select(x > number(0.0), x, x * number(slope)),
    "elu": elu,
    "hardswish": lambda x: x * hardsigmoid(x),
    "hardsigmoid": hardsigmoid,
    "sigmoid": sigmoid,
    "tanh": tirx.tanh,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "silu": lambda x: x * sigmoid(x),
}
"""The activations of `dsopt.ops`, by name, as functions of the value and the parameters."""


def activate(x: Expr, activation: str, params: Sequence[float]) -> Expr:
    """Apply an activation by name."""
    return ACTIVATIONS[activation](x, *params)
