"""Comparisons, logic, bits, and choices between two values."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from dsopt.backends.cpu.builder import Value
from dsopt.backends.cpu.emitter import Emitter
from dsopt.backends.cpu.ops.arithmetic import binary, common_dtype, floor_divide
from dsopt.backends.cpu.registry import converter

_COMPARISONS = {"eq": "Equal", "gt": "Greater", "ge": "GreaterOrEqual", "lt": "Less", "le": "LessOrEqual"}


def _register_comparison(name: str, op_type: str) -> None:
    @converter(f"aten.{name}.Tensor", f"aten.{name}.Scalar")
    def convert(cx: Emitter, a: Any, b: Any) -> Value:
        return compare(cx, op_type, a, b)


for _name, _op_type in _COMPARISONS.items():
    _register_comparison(_name, _op_type)


def compare(cx: Emitter, op_type: str, a: Any, b: Any) -> Value:
    """Return a comparison in the common dtype of both sides; bools are ordered as 0 and 1."""
    dtype = common_dtype(cx, a, b)
    if dtype == torch.bool and op_type != "Equal":
        dtype = torch.uint8
    return cx.op(op_type, cx.operand(a, dtype), cx.operand(b, dtype), dtype=torch.bool)


@converter("aten.ne.Tensor", "aten.ne.Scalar")
def convert_ne(cx: Emitter, a: Any, b: Any) -> Value:
    """Write a != b."""
    return cx.op("Not", compare(cx, "Equal", a, b))


@converter("aten.logical_and.default")
def convert_logical_and(cx: Emitter, a: fx.Node, b: fx.Node) -> Value:
    """Write a and b, of any dtype."""
    return binary(cx, "And", a, b, torch.bool)


@converter("aten.logical_or.default")
def convert_logical_or(cx: Emitter, a: fx.Node, b: fx.Node) -> Value:
    """Write a or b, of any dtype."""
    return binary(cx, "Or", a, b, torch.bool)


@converter("aten.logical_xor.default")
def convert_logical_xor(cx: Emitter, a: fx.Node, b: fx.Node) -> Value:
    """Write exclusive or, of any dtype."""
    return binary(cx, "Xor", a, b, torch.bool)


@converter("aten.logical_not.default")
def convert_logical_not(cx: Emitter, a: fx.Node) -> Value:
    """Write not, of any dtype."""
    return cx.op("Not", cx.operand(a, torch.bool))


def _register_bitwise(name: str, logical: str, bitwise: str) -> None:
    @converter(
        f"aten.bitwise_{name}.Tensor",
        f"aten.bitwise_{name}.Scalar",
        f"aten.__{name}__.Tensor",
        f"aten.__{name}__.Scalar",
    )
    def convert(cx: Emitter, a: Any, b: Any) -> Value:
        return binary(cx, logical if cx.dtype == torch.bool else bitwise, a, b)


for _name, _logical, _bitwise in (
    ("and", "And", "BitwiseAnd"),
    ("or", "Or", "BitwiseOr"),
    ("xor", "Xor", "BitwiseXor"),
):
    _register_bitwise(_name, _logical, _bitwise)


@converter("aten.bitwise_not.default")
def convert_bitwise_not(cx: Emitter, a: fx.Node) -> Value:
    """Write the complement; of bools, not."""
    return cx.op("Not" if cx.dtype == torch.bool else "BitwiseNot", cx.value(a))


@converter(
    "aten.bitwise_left_shift.Tensor", "aten.bitwise_left_shift.Tensor_Scalar", "aten.bitwise_left_shift.Scalar_Tensor",
    "aten.__lshift__.Scalar", "aten.__lshift__.Tensor",
)  # fmt: skip
def convert_left_shift(cx: Emitter, a: Any, b: Any) -> Value:
    """Write a 2^b; ONNX shifts unsigned ints only."""
    return cx.op("Mul", cx.operand(a, cx.dtype), _power_of_two(cx, b))


@converter(
    "aten.bitwise_right_shift.Tensor", "aten.bitwise_right_shift.Tensor_Scalar", "aten.bitwise_right_shift.Scalar_Tensor",
    "aten.__rshift__.Scalar", "aten.__rshift__.Tensor",
)  # fmt: skip
def convert_right_shift(cx: Emitter, a: Any, b: Any) -> Value:
    """Write floor(a / 2^b), which is the arithmetic shift."""
    return floor_divide(cx, cx.operand(a, cx.dtype), _power_of_two(cx, b))


def _power_of_two(cx: Emitter, b: Any) -> Value:
    if isinstance(b, int):
        return cx.constant(2**b, cx.dtype)
    return cx.op("Pow", cx.constant(2, cx.dtype), cx.operand(b, cx.dtype))


@converter("aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.where.Scalar")
def convert_where(cx: Emitter, condition: fx.Node, a: Any, b: Any) -> Value:
    """Write a where the condition holds, else b."""
    chosen = cx.operand(condition, torch.bool)
    return cx.op("Where", chosen, cx.operand(a, cx.dtype), cx.operand(b, cx.dtype), dtype=cx.dtype)


@converter("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def convert_masked_fill(cx: Emitter, x: fx.Node, mask: fx.Node, value: Any) -> Value:
    """Write a number where the mask holds, else x."""
    return cx.op("Where", cx.operand(mask, torch.bool), cx.operand(value, cx.dtype), cx.value(x), dtype=cx.dtype)
