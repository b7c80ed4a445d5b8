"""Elementwise operators of two tensors and more: arithmetic, comparisons, selection."""

from __future__ import annotations

import math
from collections.abc import Callable

from dsopt.backends.tir.ops.activation import activate, number
from dsopt.backends.tir.ops.broadcast import Operand, elementwise, larger, promote, smaller
from dsopt.backends.tir.program import Buffer
from dsopt.backends.tir.registry import Context, RefusedError, lowering
from dsopt.backends.tir.tvm_adapter import Expr, constant, tirx


def _dtype(x: Expr) -> str:
    return str(x.ty.dtype)


def _zero(x: Expr) -> Expr:
    return constant(0, _dtype(x))


# ---- two operands ----


LEAST = 2.0**-149
"""The least float32 above zero."""


def _is_zero(x: Expr) -> bool:
    return getattr(x, "value", None) == 0


def _quotient(a: Expr, b: Expr) -> Expr:
    """a / b, in which TVM refuses a constant zero: IEEE gives infinity of the quotient's sign, or NaN."""
    return a * constant(math.copysign(math.inf, b.value), _dtype(a)) if _is_zero(b) else a / b


def _product(a: Expr, b: Expr) -> Expr:
    """a * b, in which TVM takes a constant zero for the product, though NaN and infinity must give NaN.

    Every finite float is a multiple of the least one, so the remainder by it is a zero of the same sign.
    """
    if _dtype(a) == "bool":
        return tirx.all(a, b)
    return _fmod(a, constant(LEAST, "float32")) if _dtype(a) == "float32" and _is_zero(b) else a * b


def _truncated(a: Expr, b: Expr) -> Expr:
    return tirx.trunc(_quotient(a, b)) if _dtype(a) == "float32" else tirx.truncdiv(a, b)


def _floored(a: Expr, b: Expr) -> Expr:
    if _dtype(a) == "float32":
        return _floored_float(a, b)
    quotient, rest = tirx.truncdiv(a, b), tirx.truncmod(a, b)
    inexact = tirx.all(tirx.NE(rest, _zero(a)), tirx.NE(rest < _zero(a), b < _zero(a)))
    return quotient - tirx.Cast(_dtype(a), inexact)


def _floored_float(a: Expr, b: Expr) -> Expr:
    """The floor of a / b from its exact remainder, as torch and Python define it: 1.0 // 0.1 is 9."""
    if _is_zero(b):
        return _quotient(a, b)
    quotient = (a - _remainder(a, b)) / b
    near = tirx.floor(quotient)
    near = tirx.Select(quotient - near > constant(0.5, "float32"), near + constant(1, "float32"), near)
    return tirx.Select(tirx.EQ(b, _zero(b)), a / b, near)


def _remainder(a: Expr, b: Expr) -> Expr:
    if _dtype(a) != "float32":
        return a - _floored(a, b) * b
    rest = _fmod(a, b)
    return tirx.Select(tirx.all(tirx.NE(rest, _zero(rest)), tirx.NE(rest < _zero(a), b < _zero(b))), rest + b, rest)


def _fmod(a: Expr, b: Expr) -> Expr:
    return tirx.call_pure_extern("float32", "fmodf", a, b) if _dtype(a) == "float32" else a - _truncated(a, b) * b


_BINARY: dict[str, Callable[[Expr, Expr], Expr]] = {
    "atan2": tirx.atan2,
    "div": _quotient,
    "floor_divide": _floored,
    "fmod": _fmod,
    "copysign": lambda a, b: tirx.Select(b < _zero(b), _zero(a) - tirx.abs(a), tirx.abs(a)),
    "hypot": lambda a, b: tirx.sqrt(a * a + b * b),
    "maximum": larger,
    "minimum": smaller,
    "mul": _product,
    "remainder": _remainder,
    "bitwise_and": lambda a, b: tirx.all(a, b) if _dtype(a) == "bool" else a & b,
    "bitwise_or": lambda a, b: tirx.any(a, b) if _dtype(a) == "bool" else a | b,
    "bitwise_xor": lambda a, b: tirx.NE(a, b) if _dtype(a) == "bool" else a ^ b,
}

_BINARY_NAMES: dict[str, tuple[str, ...]] = {
    "atan2": ("default",),
    "div": ("Tensor", "Scalar"),
    "floor_divide": ("default", "Scalar"),
    "fmod": ("Tensor", "Scalar"),
    "copysign": ("Tensor", "Scalar"),
    "hypot": ("default",),
    "maximum": ("default",),
    "minimum": ("default",),
    "mul": ("Tensor", "Scalar"),
    "remainder": ("Tensor", "Scalar"),
    "bitwise_and": ("Tensor", "Scalar"),
    "bitwise_or": ("Tensor", "Scalar"),
    "bitwise_xor": ("Tensor", "Scalar"),
}


def _register_binary(name: str, function: Callable[[Expr, Expr], Expr], overloads: tuple[str, ...]) -> None:
    def lower(context: Context, a: Operand, b: Operand) -> Buffer:
        return elementwise(context, [a, b], function)

    lowering(*(f"aten.{name}.{overload}" for overload in overloads))(lower)


for _name, _overloads in _BINARY_NAMES.items():
    _register_binary(_name, _BINARY[_name], _overloads)
_register_binary("max", larger, ("other",))
_register_binary("min", smaller, ("other",))
_register_binary("__and__", _BINARY["bitwise_and"], ("Tensor", "Scalar"))
_register_binary("__or__", _BINARY["bitwise_or"], ("Tensor", "Scalar"))
_register_binary("__xor__", _BINARY["bitwise_xor"], ("Tensor", "Scalar"))


@lowering("aten.add.Tensor", "aten.add.Scalar")
def _add(context: Context, a: Operand, b: Operand, alpha: float) -> Buffer:
    if context.dtype == "bool":
        return elementwise(context, [a, b], tirx.any)
    return elementwise(context, [a, b], lambda x, y: x + (y if alpha == 1 else y * constant(alpha, _dtype(y))))


@lowering("aten.sub.Tensor", "aten.sub.Scalar")
def _sub(context: Context, a: Operand, b: Operand, alpha: float) -> Buffer:
    return elementwise(context, [a, b], lambda x, y: x - (y if alpha == 1 else y * constant(alpha, _dtype(y))))


@lowering("aten.rsub.Tensor", "aten.rsub.Scalar")
def _rsub(context: Context, a: Operand, b: Operand, alpha: float) -> Buffer:
    return _sub(context, b, a, alpha)  # type: ignore[return-value]


@lowering("dsopt.add_act.default")
def _add_act(context: Context, a: Operand, b: Operand, activation: str, params: list[float]) -> Buffer:
    return elementwise(context, [a, b], lambda x, y: activate(x + y, activation, params))


@lowering("aten.div.Tensor_mode", "aten.div.Scalar_mode")
def _div_mode(context: Context, a: Operand, b: Operand, rounding_mode: str | None) -> Buffer:
    functions = {None: _BINARY["div"], "floor": _floored, "trunc": _truncated}
    return elementwise(context, [a, b], functions[rounding_mode])


def _power(x: Expr, exponent: Expr) -> Expr:
    return tirx.call_pure_extern("float32", "powf", x, exponent)


@lowering("aten.pow.Tensor_Scalar")
def _pow_scalar(context: Context, x: Buffer, exponent: float) -> Buffer:
    def power(v: Expr) -> Expr:
        if exponent == 0.5:
            return tirx.sqrt(v)
        if exponent == -0.5:
            return number(1.0) / tirx.sqrt(v)
        if float(exponent).is_integer() and 1 <= abs(exponent) <= 8:
            result = v
            for _ in range(int(abs(exponent)) - 1):
                result = result * v
            return result if exponent > 0 else constant(1, _dtype(v)) / result
        if exponent == 0:
            return constant(1, _dtype(v))
        return _power(v, number(exponent))

    if context.dtype != "float32" and not (float(exponent).is_integer() and 0 <= exponent <= 8):
        raise RefusedError(f"an integer tensor to the power {exponent}", "convert it to float first")
    return elementwise(context, [x], power)


@lowering("aten.pow.Tensor_Tensor", "aten.pow.Scalar")
def _pow(context: Context, x: Operand, exponent: Operand) -> Buffer:
    if context.dtype != "float32":
        raise RefusedError("a power of integer tensors", "convert them to float first")
    return elementwise(context, [x, exponent], _power)


_COMPARISONS: dict[str, Callable[[Expr, Expr], Expr]] = {
    "eq": tirx.EQ,
    "ne": tirx.NE,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "logical_and": lambda a, b: tirx.all(a, b),
    "logical_or": lambda a, b: tirx.any(a, b),
    "logical_xor": tirx.NE,
}


def _compared(a: Expr, b: Expr, name: str) -> Expr:
    if _dtype(a) == "bool" and not name.startswith("logical"):
        a, b = tirx.Cast("int32", a), tirx.Cast("int32", b)
    return _COMPARISONS[name](a, b)


def _register_comparison(name: str) -> None:
    logical = name.startswith("logical")

    def lower(context: Context, a: Operand, b: Operand) -> Buffer:
        return elementwise(context, [a, b], lambda x, y: _compared(x, y, name), "bool" if logical else promote([a, b]))

    lowering(*(f"aten.{name}.{overload}" for overload in (("default",) if logical else ("Tensor", "Scalar"))))(lower)


for _name in _COMPARISONS:
    _register_comparison(_name)


@lowering("aten.isnan.default")
def _isnan(context: Context, x: Buffer) -> Buffer:
    return elementwise(context, [x], tirx.isnan, x.dtype)  # not v != v, which TVM simplifies to false


# ---- selection ----


@lowering("aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.where.Scalar")
def _where(context: Context, condition: Buffer, a: Operand, b: Operand) -> Buffer:
    zero = constant(0, context.dtype)
    return elementwise(context, [condition, a, b], lambda c, x, y: tirx.Select(tirx.NE(c, zero), x, y))


@lowering("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def _masked_fill(context: Context, x: Buffer, mask: Buffer, value: Operand) -> Buffer:
    zero = constant(0, context.dtype)
    return elementwise(context, [x, mask, value], lambda v, m, other: tirx.Select(tirx.NE(m, zero), other, v))


@lowering("aten.fill.Tensor")
def _fill(context: Context, x: Buffer, value: Buffer) -> Buffer:
    return elementwise(context, [value], lambda v: v)


# ---- three operands ----


@lowering("aten.addcmul.default")
def _addcmul(context: Context, x: Buffer, a: Buffer, b: Buffer, value: float) -> Buffer:
    return elementwise(context, [x, a, b], lambda v, p, q: v + constant(value, _dtype(v)) * p * q)


@lowering("aten.addcdiv.default")
def _addcdiv(context: Context, x: Buffer, a: Buffer, b: Buffer, value: float) -> Buffer:
    return elementwise(context, [x, a, b], lambda v, p, q: v + constant(value, _dtype(v)) * p / q)


@lowering("aten.lerp.Scalar", "aten.lerp.Tensor")
def _lerp(context: Context, a: Buffer, b: Buffer, weight: Operand) -> Buffer:
    return elementwise(context, [a, b, weight], lambda x, y, w: x + w * (y - x))
