"""Arithmetic, comparison and logic, element by element; on known numbers too, where shapes are computed."""

from __future__ import annotations

import math
import operator as python
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import SymInt, Tensor

from dsopt.frontend.onnx_reader.call import Call, is_floating, to_type
from dsopt.frontend.onnx_reader.problems import MalformedError
from dsopt.frontend.onnx_reader.registry import operator, register_all
from dsopt.frontend.onnx_reader.sizes import larger, negated, smaller, to_float, to_integer
from dsopt.frontend.onnx_reader.tensors import torch_dtype
from dsopt.frontend.onnx_reader.values import MAX_KNOWN, Known, rounded

# ---- known numbers ----


def apply_known(function: Callable[..., Any], dtype: torch.dtype, *operands: Known) -> Known:
    """Apply a function of numbers to known numbers, broadcasting them."""
    arrays = np.broadcast_arrays(*(operand.array for operand in operands))
    result = np.empty(arrays[0].shape, dtype=object)
    for index in np.ndindex(result.shape):
        result[index] = rounded(function(*(array[index] for array in arrays)), dtype)
    return Known(result, dtype)


def _known(function: Callable[..., Any], dtype: torch.dtype | None = None) -> Callable[[Call], Known | None]:
    def run(call: Call) -> Known | None:
        operands = [call.known(index) for index in range(len(call.values))]
        found = [operand for operand in operands if operand is not None]
        if len(found) != len(operands):
            return None
        if math.prod(np.broadcast_shapes(*(operand.array.shape for operand in found))) > MAX_KNOWN:
            return None
        return apply_known(function, dtype or found[-1].dtype, *found)

    return run


def divide_numbers(left: Any, right: Any) -> Any:
    """Divide as ONNX does: integers towards zero. Symbolic sizes are never negative, so rounding down is the same."""
    if isinstance(left, float) or isinstance(right, float) or not isinstance(left, (int, SymInt)):
        return left / right
    if isinstance(left, int) and isinstance(right, int):
        quotient = abs(left) // abs(right)
        return quotient if (left < 0) == (right < 0) else -quotient
    return left // right


def _numbers_where(condition: Any, left: Any, right: Any) -> Any:
    # A size is never -1, which is what exporters ask; any other question is settled for the sizes of the example.
    return left if condition else right


def _floor(number: Any) -> Any:
    return to_float(math.floor(number))


def _ceil(number: Any) -> Any:
    return to_float(math.ceil(number))


# ---- two operands ----


def _operands(call: Call) -> tuple[Any, Any]:
    """Return both operands; a Python number for a scalar whose rank cannot widen the result."""
    left, right = call.value(0), call.value(1)
    if isinstance(left, Tensor):
        return left, call.operand(1, left.dim())
    if isinstance(right, Tensor):
        return call.operand(0, right.dim()), right
    return call.tensor(0), call.tensor(1)


def _as_tensors(call: Call) -> tuple[Tensor, Tensor]:
    return call.tensor(0), call.tensor(1)


@operator("Add", known=_known(python.add))
def add(call: Call) -> Tensor:
    """Add; a number goes second, as torch's users write it."""
    left, right = _operands(call)
    return torch.add(left, right) if isinstance(left, Tensor) else torch.add(right, left)


@operator("Sub", known=_known(python.sub))
def subtract(call: Call) -> Tensor:
    """Subtract."""
    left, right = _operands(call)
    result: Tensor = left - right
    return result


@operator("Mul", known=_known(python.mul))
def multiply(call: Call) -> Tensor:
    """Multiply; a number goes second, as torch's users write it."""
    left, right = _operands(call)
    return torch.mul(left, right) if isinstance(left, Tensor) else torch.mul(right, left)


@operator("Div", known=_known(divide_numbers))
def divide(call: Call) -> Tensor:
    """Divide; integers towards zero."""
    left, right = _operands(call)
    tensor = left if isinstance(left, Tensor) else right
    if is_floating(tensor):
        result: Tensor = left / right
        return result
    return torch.div(left, right, rounding_mode="trunc")


@operator("Pow", known=_known(python.pow))
def power(call: Call) -> Tensor:
    """Raise to a power; the result has the base's type, whatever the exponent's is."""
    x = call.tensor(0)
    y = call.operand(1, x.dim())
    if isinstance(y, float) and y.is_integer() and abs(y) < 64:
        y = int(y)
    result = torch.pow(x, y)
    return to_type(result, x.dtype)


@operator("Mod", known=_known(python.mod))
def modulo(call: Call) -> Tensor:
    """Take the remainder: with the divisor's sign, or with fmod=1 the dividend's as in C."""
    left, right = _as_tensors(call)
    return torch.fmod(left, right) if call.integer("fmod", 0) else torch.remainder(left, right)


_COMPARISONS: tuple[tuple[str, Any, Any], ...] = (
    ("Equal", torch.eq, python.eq),
    ("Greater", torch.gt, python.gt),
    ("GreaterOrEqual", torch.ge, python.ge),
    ("Less", torch.lt, python.lt),
    ("LessOrEqual", torch.le, python.le),
)


def _comparison(function: Callable[[Tensor, Any], Tensor]) -> Callable[[Call], Tensor]:
    def run(call: Call) -> Tensor:
        left, right = _operands(call)
        return function(left if isinstance(left, Tensor) else call.tensor(0), right)

    return run


for _name, _function, _python in _COMPARISONS:
    operator(_name, known=_known(_python, torch.bool))(_comparison(_function))


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Call], Tensor]:
    return lambda call: function(*_as_tensors(call))


operator("And", known=_known(lambda a, b: a and b, torch.bool))(_binary(torch.logical_and))
operator("Or", known=_known(lambda a, b: a or b, torch.bool))(_binary(torch.logical_or))
register_all(
    (name, _binary(function))
    for name, function in (
        ("Xor", torch.logical_xor),
        ("BitwiseAnd", torch.bitwise_and),
        ("BitwiseOr", torch.bitwise_or),
        ("BitwiseXor", torch.bitwise_xor),
    )
)


@operator("BitShift")
def bit_shift(call: Call) -> Tensor:
    """Shift unsigned bits; computed in int64, because torch shifts no wide unsigned types."""
    left, right = _as_tensors(call)
    x, y = to_type(left, torch.int64), to_type(right, torch.int64)
    if call.text("direction", "LEFT") == "LEFT":
        return to_type(torch.bitwise_left_shift(x, y), left.dtype)
    if left.dtype == torch.uint64:  # the sign bit of int64 is a value bit here
        low = torch.bitwise_right_shift(torch.bitwise_right_shift(x, 1) & (2**63 - 1), (y - 1).clamp(min=0))
        return to_type(torch.where(y == 0, x, low), left.dtype)
    return to_type(torch.bitwise_right_shift(x, y), left.dtype)


# ---- one operand ----


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[[Call], Tensor]:
    return lambda call: function(call.tensor(0))


def _is_inf(call: Call) -> Tensor:
    x = call.tensor(0)
    negative, positive = call.integer("detect_negative", 1), call.integer("detect_positive", 1)
    if negative and positive:
        return torch.isinf(x)
    if not negative and not positive:
        return torch.zeros_like(x, dtype=torch.bool)
    return torch.isposinf(x) if positive else torch.isneginf(x)


register_all(
    (name, _unary(function))
    for name, function in (
        ("Acos", torch.acos),
        ("Acosh", torch.acosh),
        ("Asin", torch.asin),
        ("Asinh", torch.asinh),
        ("Atan", torch.atan),
        ("Atanh", torch.atanh),
        ("BitwiseNot", torch.bitwise_not),
        ("Cos", torch.cos),
        ("Cosh", torch.cosh),
        ("Det", torch.det),
        ("Erf", torch.erf),
        ("Exp", torch.exp),
        ("IsNaN", torch.isnan),
        ("Log", torch.log),
        ("Round", torch.round),
        ("Sign", torch.sign),
        ("Sin", torch.sin),
        ("Sinh", torch.sinh),
        ("Tan", torch.tan),
    )
)
operator("IsInf")(_is_inf)
operator("Abs", known=_known(abs))(_unary(torch.abs))
operator("Neg", known=_known(python.neg))(_unary(torch.neg))
operator("Not", known=_known(negated, torch.bool))(_unary(torch.logical_not))
operator("Sqrt", known=_known(lambda a: a**0.5))(_unary(torch.sqrt))
operator("Reciprocal", known=_known(lambda a: 1.0 / a))(_unary(torch.reciprocal))
operator("Floor", known=_known(_floor))(_unary(torch.floor))
operator("Ceil", known=_known(_ceil))(_unary(torch.ceil))


# ---- several operands ----


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Call], Tensor]:
    def run(call: Call) -> Tensor:
        tensors = call.tensors()
        if not tensors:
            raise MalformedError("it has no inputs")
        return reduce(function, tensors)

    return run


def _known_folded(function: Callable[..., Any]) -> Callable[[Call], Known | None]:
    return _known(lambda *numbers: reduce(function, numbers))


operator("Sum", known=_known_folded(python.add))(_folded(torch.add))
operator("Max", known=_known_folded(larger))(_folded(torch.maximum))
operator("Min", known=_known_folded(smaller))(_folded(torch.minimum))


@operator("Mean")
def mean(call: Call) -> Tensor:
    """Average the inputs, element by element."""
    return _folded(torch.add)(call) / len(call.values)


@operator("Where", known=_known(_numbers_where))
def where(call: Call) -> Tensor:
    """Choose between two operands, element by element."""
    condition, left, right = call.tensor(0), call.value(1), call.value(2)
    if isinstance(left, Tensor):
        return torch.where(condition, left, _choice(call, 2, left, condition))
    if isinstance(right, Tensor):
        return torch.where(condition, _choice(call, 1, right, condition), right)
    return torch.where(condition, call.tensor(1), call.tensor(2))


def _choice(call: Call, index: int, other: Tensor, condition: Tensor) -> Any:
    number = call.operand(index, max(other.dim(), condition.dim()))
    # torch promotes a bool tensor beside a number, and an integer one beside a float
    return number if isinstance(number, Tensor) or is_floating(other) else call.tensor(index)


@operator("Clip")
def clip(call: Call) -> Tensor:
    """Keep between two bounds, which are attributes before opset 11 and inputs since."""
    x = call.tensor(0)
    if call.version < 11:
        low: Any = call.real("min", -math.inf) if "min" in call.node.attributes else None
        high: Any = call.real("max", math.inf) if "max" in call.node.attributes else None
        return clamped(x, low, high)
    low = call.operand(1, x.dim()) if call.has(1) else None
    high = call.operand(2, x.dim()) if call.has(2) else None
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        low, high = call.optional(1), call.optional(2)
    return clamped(x, low, high)


def clamped(x: Tensor, low: Any, high: Any) -> Tensor:
    """Clamp, as the activation that networks use where the bounds are its."""
    if low is None and high is None:
        return x.clone()
    if is_floating(x) and not isinstance(low, Tensor) and not isinstance(high, Tensor) and low == 0:
        if high == 6:
            return torch.nn.functional.relu6(x)
        if high is None or high == math.inf:
            return torch.relu(x)
    # The lower bound first: where the two cross, ONNX returns the upper one, as torch does.
    return torch.clamp(x, low, high)


# ---- types ----


def _cast_known(call: Call) -> Known | None:
    source = call.known(0)
    dtype = torch_dtype(call.integer("to", 0), "the result")
    if source is None:
        return None
    if dtype == torch.bool:
        return apply_known(lambda item: item != 0, dtype, source)
    if dtype.is_floating_point:
        return apply_known(to_float, dtype, source)
    return apply_known(_to_integer, dtype, source)


def _to_integer(item: Any) -> Any:
    return int(item) if isinstance(item, (bool, float)) else to_integer(item)


@operator("Cast", known=_cast_known)
def cast(call: Call) -> Tensor:
    """Convert to another element type."""
    return converted(call.tensor(0), torch_dtype(call.integer("to", 0), "the result"))


@operator("CastLike")
def cast_like(call: Call) -> Tensor:
    """Convert to the element type of another tensor."""
    return converted(call.tensor(0), call.tensor(1).dtype)


def converted(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert; a float outside the range of an 8-bit integer wraps as in C, which is done by way of a wider one."""
    if x.dtype != dtype and x.is_floating_point() and dtype in (torch.uint8, torch.int8, torch.uint16, torch.int16):
        return x.to(torch.int64).to(dtype)
    return to_type(x, dtype)


@operator("BitCast")
def bit_cast(call: Call) -> Tensor:
    """Take the same bits as another element type."""
    return call.tensor(0).view(torch_dtype(call.integer("to", 0), "the result"))
