"""Mathematical functions of one value."""

from __future__ import annotations

import math

import torch
from torch import fx

from dsopt.backends.cpu.builder import Value
from dsopt.backends.cpu.emitter import Emitter
from dsopt.backends.cpu.ops.activation import clip
from dsopt.backends.cpu.ops.arithmetic import binary, truncate
from dsopt.backends.cpu.registry import converter

_UNARY = {
    "abs": "Abs",
    "neg": "Neg",
    "exp": "Exp",
    "log": "Log",
    "sqrt": "Sqrt",
    "reciprocal": "Reciprocal",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "sin": "Sin",
    "cos": "Cos",
    "tan": "Tan",
    "asin": "Asin",
    "acos": "Acos",
    "atan": "Atan",
    "sinh": "Sinh",
    "cosh": "Cosh",
    "asinh": "Asinh",
    "acosh": "Acosh",
    "atanh": "Atanh",
    "erf": "Erf",
    "sign": "Sign",
    "sgn": "Sign",
}
_ROUNDING = {"floor": "Floor", "ceil": "Ceil", "round": "Round"}


def _register_unary(name: str, op_type: str, of_ints: bool) -> None:
    @converter(f"aten.{name}.default")
    def convert(cx: Emitter, x: fx.Node) -> Value:
        value = cx.operand(x, cx.dtype)
        return cx.op(op_type, value) if of_ints or cx.dtype.is_floating_point else cx.op("Identity", value)


for _name, _op_type in _UNARY.items():
    _register_unary(_name, _op_type, of_ints=True)
for _name, _op_type in _ROUNDING.items():
    _register_unary(_name, _op_type, of_ints=False)


@converter("aten.trunc.default", "aten.fix.default")
def convert_trunc(cx: Emitter, x: fx.Node) -> Value:
    """Write trunc."""
    value = cx.value(x)
    return truncate(cx, value) if cx.dtype.is_floating_point else cx.op("Identity", value)


@converter("aten.frac.default")
def convert_frac(cx: Emitter, x: fx.Node) -> Value:
    """Write x - trunc(x)."""
    value = cx.value(x)
    return cx.op("Sub", value, truncate(cx, value))


@converter("aten.round.decimals")
def convert_round_decimals(cx: Emitter, x: fx.Node, *, decimals: int) -> Value:
    """Write rounding to decimals."""
    factor = cx.constant(10.0 ** abs(decimals), cx.dtype)
    up, down = ("Mul", "Div") if decimals >= 0 else ("Div", "Mul")
    return cx.op(down, cx.op("Round", cx.op(up, cx.value(x), factor)), factor)


@converter("aten.rsqrt.default")
def convert_rsqrt(cx: Emitter, x: fx.Node) -> Value:
    """Write 1 / sqrt(x)."""
    return cx.op("Reciprocal", cx.op("Sqrt", cx.operand(x, cx.dtype)))


@converter("aten.square.default")
def convert_square(cx: Emitter, x: fx.Node) -> Value:
    """Write x x."""
    return binary(cx, "Mul", x, x)


@converter("aten.exp2.default")
def convert_exp2(cx: Emitter, x: fx.Node) -> Value:
    """Write 2^x."""
    return binary(cx, "Pow", 2.0, x)


@converter("aten.expm1.default")
def convert_expm1(cx: Emitter, x: fx.Node) -> Value:
    """Write exp(x) - 1 as 2 sinh(x / 2) exp(x / 2), which keeps its digits near 0."""
    half = cx.op("Mul", cx.operand(x, cx.dtype), cx.constant(0.5, cx.dtype))
    grown = cx.op("Mul", cx.op("Sinh", half), cx.op("Exp", half))
    return cx.op("Mul", grown, cx.constant(2.0, cx.dtype))


@converter("aten.log1p.default")
def convert_log1p(cx: Emitter, x: fx.Node) -> Value:
    """Write log(1 + x) as log(u) x / (u - 1) with u = 1 + x rounded, which keeps its digits near 0 (Goldberg 1991, theorem 4)."""
    value, one = cx.operand(x, cx.dtype), cx.constant(1, cx.dtype)
    grown = cx.op("Add", value, one)
    rest = cx.op("Sub", grown, one)
    exact = cx.op("Div", cx.op("Mul", cx.op("Log", grown), value), rest)
    tiny = cx.op("Equal", rest, cx.constant(0, cx.dtype), dtype=torch.bool)
    infinite = cx.op("IsInf", value, dtype=torch.bool)
    return cx.op("Where", tiny, value, cx.op("Where", infinite, value, exact, dtype=cx.dtype), dtype=cx.dtype)


@converter("aten.log2.default")
def convert_log2(cx: Emitter, x: fx.Node) -> Value:
    """Write the binary logarithm."""
    return cx.op("Mul", cx.op("Log", cx.operand(x, cx.dtype)), cx.constant(1 / math.log(2), cx.dtype))


@converter("aten.log10.default")
def convert_log10(cx: Emitter, x: fx.Node) -> Value:
    """Write the decimal logarithm."""
    return cx.op("Mul", cx.op("Log", cx.operand(x, cx.dtype)), cx.constant(1 / math.log(10), cx.dtype))


@converter("aten.erfc.default")
def convert_erfc(cx: Emitter, x: fx.Node) -> Value:
    """Write 1 - erf(x)."""
    return cx.op("Sub", cx.constant(1, cx.dtype), cx.op("Erf", cx.operand(x, cx.dtype)))


@converter("aten.logit.default")
def convert_logit(cx: Emitter, x: fx.Node, eps: float | None = None) -> Value:
    """Write log(x / (1 - x)), x first limited to eps..1 - eps."""
    value = cx.operand(x, cx.dtype)
    value = value if eps is None else clip(cx, value, eps, 1 - eps)
    return cx.op("Log", cx.op("Div", value, cx.op("Sub", cx.constant(1, value.dtype), value)))


@converter("aten.isnan.default")
def convert_isnan(cx: Emitter, x: fx.Node) -> Value:
    """Write whether x is NaN."""
    return cx.op("IsNaN", _as_float(cx, x), dtype=torch.bool)


@converter("aten.isinf.default")
def convert_isinf(cx: Emitter, x: fx.Node) -> Value:
    """Write whether x is infinite."""
    return cx.op("IsInf", _as_float(cx, x), dtype=torch.bool)


@converter("aten.isfinite.default")
def convert_isfinite(cx: Emitter, x: fx.Node) -> Value:
    """Write whether x is neither NaN nor infinite."""
    value = _as_float(cx, x)
    bad = cx.op("Or", cx.op("IsNaN", value, dtype=torch.bool), cx.op("IsInf", value, dtype=torch.bool))
    return cx.op("Not", bad)


def _as_float(cx: Emitter, x: fx.Node) -> Value:
    value = cx.value(x)
    return value if value.dtype.is_floating_point else cx.cast(value, torch.float32)


@converter("aten.nan_to_num.default")
def convert_nan_to_num(
    cx: Emitter, x: fx.Node, nan: float | None = None, posinf: float | None = None, neginf: float | None = None
) -> Value:
    """Write finite numbers for NaN and the infinities."""
    value = cx.value(x)
    if not cx.dtype.is_floating_point:
        return cx.op("Identity", value)
    limits = torch.finfo(cx.dtype)
    replaced = cx.op("IsNaN", value, dtype=torch.bool), cx.constant(nan or 0.0, cx.dtype)
    result = cx.op("Where", *replaced, value, dtype=cx.dtype)
    for sign, number in ((1, limits.max if posinf is None else posinf), (0, limits.min if neginf is None else neginf)):
        found = cx.op("IsInf", value, dtype=torch.bool, detect_positive=sign, detect_negative=1 - sign)
        result = cx.op("Where", found, cx.constant(number, cx.dtype), result, dtype=cx.dtype)
    return result
