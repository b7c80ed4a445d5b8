"""Elementwise operators of one tensor: mathematics, activations and casts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from dsopt.backends.tir.ops import activation as act
from dsopt.backends.tir.ops.activation import ACTIVATIONS, activate, number
from dsopt.backends.tir.ops.broadcast import cast, elementwise
from dsopt.backends.tir.ops.softmax import split_at
from dsopt.backends.tir.program import Buffer
from dsopt.backends.tir.registry import Context, RefusedError, lowering
from dsopt.backends.tir.tvm_adapter import Expr, constant, tirx

# ---- one operand ----


def _dtype(x: Expr) -> str:
    return str(x.ty.dtype)


def _zero(x: Expr) -> Expr:
    return constant(0, _dtype(x))


def _sign(x: Expr) -> Expr:
    one, zero = constant(1, _dtype(x)), _zero(x)
    return tirx.Select(x > zero, one, tirx.Select(x < zero, zero - one, zero))


def _relu(x: Expr) -> Expr:
    return tirx.max(x, _zero(x))


def _log(x: Expr, scale: float) -> Expr:
    return tirx.log(x) * number(scale)


def _sinh(x: Expr) -> Expr:
    return (tirx.exp(x) - tirx.exp(number(0.0) - x)) * number(0.5)


def _cosh(x: Expr) -> Expr:
    return (tirx.exp(x) + tirx.exp(number(0.0) - x)) * number(0.5)


def _tan(x: Expr) -> Expr:
    return tirx.sin(x) / tirx.cos(x)


def _asinh(x: Expr) -> Expr:
    """Sign of x times log(|x| + sqrt(x^2 + 1)), written with log1p against cancellation near 0."""
    a = tirx.abs(x)
    value = tirx.log1p(a + a * a / (number(1.0) + tirx.sqrt(a * a + number(1.0))))
    return tirx.Select(x < number(0.0), number(0.0) - value, value)


def _leg(x: Expr) -> Expr:
    """sqrt(1 - x^2): the other leg of the right triangle with hypotenuse 1, as (1 - x)(1 + x) against cancellation near 1."""
    return tirx.sqrt((number(1.0) - x) * (number(1.0) + x))


_UNARY: dict[str, Callable[[Expr], Expr]] = {
    "abs": tirx.abs,
    "acos": lambda x: tirx.atan2(_leg(x), x),
    "acosh": lambda x: tirx.log(x + tirx.sqrt((x - number(1.0)) * (x + number(1.0)))),
    "asin": lambda x: tirx.atan2(x, _leg(x)),
    "asinh": _asinh,
    "atan": lambda x: tirx.atan2(x, number(1.0)),
    "atanh": lambda x: number(0.5) * tirx.log1p((x + x) / (number(1.0) - x)),
    "ceil": lambda x: tirx.ceil(x),
    "cos": tirx.cos,
    "cosh": _cosh,
    "erf": tirx.erf,
    "erfc": lambda x: number(1.0) - tirx.erf(x),
    "exp": tirx.exp,
    "exp2": lambda x: tirx.exp(x * number(math.log(2.0))),
    "expm1": lambda x: tirx.call_pure_extern("float32", "expm1f", x),
    "floor": lambda x: tirx.floor(x),
    "frac": lambda x: x - tirx.trunc(x),
    "log": tirx.log,
    "log10": lambda x: _log(x, 1.0 / math.log(10.0)),
    "log1p": tirx.log1p,
    "log2": lambda x: _log(x, 1.0 / math.log(2.0)),
    "log_sigmoid": lambda x: number(0.0) - act.softplus(number(0.0) - x, 1.0, math.inf),
    "mish": lambda x: x * tirx.tanh(act.softplus(x)),
    "neg": lambda x: _zero(x) - x,
    "reciprocal": lambda x: number(1.0) / x,
    "relu": _relu,
    "relu6": ACTIVATIONS["relu6"],
    "round": lambda x: tirx.nearbyint(x),
    "rsqrt": lambda x: number(1.0) / tirx.sqrt(x),
    "hardsigmoid": ACTIVATIONS["hardsigmoid"],
    "hardswish": ACTIVATIONS["hardswish"],
    "selu": lambda x: act.elu(x, 1.6732632423543772, 1.0507009873554805),
    "sigmoid": act.sigmoid,
    "sign": _sign,
    "silu": ACTIVATIONS["silu"],
    "sin": tirx.sin,
    "sinh": _sinh,
    "sqrt": tirx.sqrt,
    "square": lambda x: x * x,
    "tan": _tan,
    "tanh": tirx.tanh,
    "trunc": lambda x: tirx.trunc(x),
}

_INTEGER_IDENTITIES = frozenset({"ceil", "floor", "round", "trunc"})


def _register_unary(name: str, function: Callable[[Expr], Expr]) -> None:
    def lower(context: Context, x: Buffer) -> Buffer:
        if name in _INTEGER_IDENTITIES and x.dtype != "float32":
            return context.view(x)
        return elementwise(context, [x], function)

    lowering(f"aten.{name}.default")(lower)


for _name, _function in _UNARY.items():
    _register_unary(_name, _function)


@lowering("aten.isinf.default")
def _isinf(context: Context, x: Buffer) -> Buffer:
    return elementwise(context, [x], lambda v: tirx.abs(v) > number(3.4028234663852886e38), x.dtype)


@lowering("aten.signbit.default")
def _signbit(context: Context, x: Buffer) -> Buffer:
    return elementwise(context, [x], lambda v: v < _zero(v), x.dtype)


@lowering("aten.hardtanh.default", "aten.clamp.default", "aten.clip.default")
def _clamp(context: Context, x: Buffer, low: float | None = None, high: float | None = None) -> Buffer:
    def limit(value: Expr) -> Expr:
        value = value if low is None else tirx.max(value, constant(low, _dtype(value)))
        return value if high is None else tirx.min(value, constant(high, _dtype(value)))

    return elementwise(context, [x], limit)


@lowering("aten.clamp_min.default")
def _clamp_min(context: Context, x: Buffer, low: float) -> Buffer:
    return elementwise(context, [x, low], tirx.max)


@lowering("aten.clamp_max.default")
def _clamp_max(context: Context, x: Buffer, high: float) -> Buffer:
    return elementwise(context, [x, high], tirx.min)


@lowering("aten.clamp.Tensor")
def _clamp_tensor(context: Context, x: Buffer, low: Buffer | None, high: Buffer | None) -> Buffer:
    limits = [limit for limit in (low, high) if limit is not None]

    def limit(value: Expr, *bounds: Expr) -> Expr:
        rest = list(bounds)
        value = value if low is None else tirx.max(value, rest.pop(0))
        return value if high is None else tirx.min(value, rest.pop(0))

    return elementwise(context, [x, *limits], limit)


@lowering("aten.leaky_relu.default")
def _leaky_relu(context: Context, x: Buffer, slope: float) -> Buffer:
    return elementwise(context, [x], lambda v: activate(v, "leaky_relu", [slope]))


@lowering("aten.rrelu.default")
def _rrelu(context: Context, x: Buffer, lower: float, upper: float, training: bool, generator: Any) -> Buffer:
    if training:
        raise RefusedError("a random slope", "export the model in eval mode")
    return elementwise(context, [x], lambda v: activate(v, "leaky_relu", [(lower + upper) / 2]))


@lowering("aten.elu.default")
def _elu(context: Context, x: Buffer, alpha: float, scale: float, input_scale: float) -> Buffer:
    return elementwise(context, [x], lambda v: act.elu(v, alpha, scale, input_scale))


@lowering("aten.celu.default")
def _celu(context: Context, x: Buffer, alpha: float) -> Buffer:
    return elementwise(context, [x], lambda v: act.elu(v, alpha, 1.0, 1.0 / alpha))


@lowering("aten.gelu.default")
def _gelu(context: Context, x: Buffer, approximate: str) -> Buffer:
    return elementwise(context, [x], act.gelu_tanh if approximate == "tanh" else act.gelu)


@lowering("aten.glu.default")
def _glu(context: Context, x: Buffer, dim: int) -> Buffer:
    before, size, after = split_at(x.shape, dim)
    half = size // 2
    result = context.result()
    with context.kernel() as k:
        source, y = k.read("x", x, (before, size, after)), k.write("y", result, (before, half, after))
        with k.grid(o=before, j=half, i=after) as (o, j, i):
            k.store(y, source[o, j, i] * act.sigmoid(source[o, j + half, i]), o, j, i)
    return result


@lowering("aten.logit.default")
def _logit(context: Context, x: Buffer, epsilon: float | None) -> Buffer:
    def logit(v: Expr) -> Expr:
        v = v if epsilon is None else act.clamp(v, epsilon, 1.0 - epsilon)
        return tirx.log(v / (number(1.0) - v))

    return elementwise(context, [x], logit)


@lowering("aten.softplus.default")
def _softplus(context: Context, x: Buffer, beta: float, threshold: float) -> Buffer:
    return elementwise(context, [x], lambda v: act.softplus(v, beta, threshold))


@lowering("aten.threshold.default")
def _threshold(context: Context, x: Buffer, threshold: float, value: float) -> Buffer:
    return elementwise(context, [x, threshold, value], lambda v, t, other: tirx.Select(v > t, v, other))


@lowering("aten.hardshrink.default")
def _hardshrink(context: Context, x: Buffer, bound: float) -> Buffer:
    return elementwise(context, [x], lambda v: tirx.Select(tirx.abs(v) > number(bound), v, number(0.0)))


@lowering("aten.softshrink.default")
def _softshrink(context: Context, x: Buffer, bound: float) -> Buffer:
    def shrink(v: Expr) -> Expr:
        return tirx.Select(v > number(bound), v - number(bound), tirx.min(v + number(bound), number(0.0)))

    return elementwise(context, [x], shrink)


@lowering("aten.prelu.default", "aten._prelu_kernel.default")
def _prelu(context: Context, x: Buffer, slope: Buffer) -> Buffer:
    if slope.elements > 1:
        rank = len(x.shape)
        slope = context.view(slope, tuple(slope.elements if dim == min(1, rank - 1) else 1 for dim in range(rank)))
    return elementwise(context, [x, slope], lambda v, s: tirx.Select(v > number(0.0), v, v * s))


@lowering("aten.logical_not.default", "aten.bitwise_not.default")
def _logical_not(context: Context, x: Buffer) -> Buffer:
    if context.dtype != "bool":
        return elementwise(context, [x], lambda v: _zero(v) - v - constant(1, _dtype(v)))
    return elementwise(context, [x], lambda v: tirx.Not(v), "bool")


# ---- casts ----


def _convert(context: Context, x: Buffer) -> Buffer:
    if x.dtype == context.dtype:
        return context.view(x)
    return elementwise(context, [x], lambda v: cast(v, x.dtype, context.dtype), x.dtype)


@lowering(
    "aten.to.dtype",
    "aten.to.dtype_layout",
    "aten.to.device",
    "aten.to.other",
    "aten._to_copy.default",
    "aten.type_as.default",
    "prims.convert_element_type.default",
)
def _to(context: Context, x: Buffer, *options: Any) -> Buffer:
    return _convert(context, x)
