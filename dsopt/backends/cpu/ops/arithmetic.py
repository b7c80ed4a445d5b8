"""Arithmetic, elementwise, with torch's promotion of dtypes and its rules of division."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from dsopt.backends.cpu.builder import Value
from dsopt.backends.cpu.emitter import Emitter
from dsopt.backends.cpu.ops.activation import activate, clip
from dsopt.backends.cpu.registry import RefusalError, converter


def common_dtype(cx: Emitter, *args: Any) -> torch.dtype:
    """Return the dtype that torch computes in for these arguments: tensors, numbers or sizes."""
    result: Any = None
    for arg in args:
        item = _stand_in(arg)
        result = (
            item
            if result is None
            else torch.empty((0,) * _category(result, item), dtype=torch.result_type(result, item))
        )
    return result.dtype if isinstance(result, Tensor) else torch.result_type(result, torch.tensor(result))


def _stand_in(arg: Any) -> Any:
    if not isinstance(arg, fx.Node):
        return arg
    value = arg.meta["val"]
    if isinstance(value, Tensor):
        return torch.empty((0,) * min(value.dim(), 1), dtype=value.dtype)
    return 1.0 if isinstance(value, (float, torch.SymFloat)) else 1


def _category(*items: Any) -> int:
    return max(item.dim() if isinstance(item, Tensor) else 0 for item in items)


def binary(cx: Emitter, op_type: str, a: Any, b: Any, dtype: torch.dtype | None = None) -> Value:
    """Append an operator of two arguments in the result's dtype."""
    dtype = dtype or cx.dtype
    return cx.op(op_type, cx.operand(a, dtype), cx.operand(b, dtype))


def scaled(cx: Emitter, b: Any, alpha: float, dtype: torch.dtype) -> Value:
    """Return alpha * b."""
    value = cx.operand(b, dtype)
    return value if alpha == 1 else cx.op("Mul", value, cx.operand(alpha, dtype))


@converter("aten.add.Tensor", "aten.add.Scalar")
def convert_add(cx: Emitter, a: Any, b: Any, alpha: float = 1) -> Value:
    """Write a + alpha b; of bools, a or b."""
    if cx.dtype == torch.bool:
        return binary(cx, "Or", a, b)
    return cx.op("Add", cx.operand(a, cx.dtype), scaled(cx, b, alpha, cx.dtype))


@converter("dsopt.add_act.default")
def convert_add_act(cx: Emitter, x: fx.Node, y: fx.Node, activation: str, params: Sequence[float]) -> Value:
    """Write an addition and its activation."""
    return activate(cx, binary(cx, "Add", x, y), activation, params)


@converter("aten.sub.Tensor", "aten.sub.Scalar")
def convert_sub(cx: Emitter, a: Any, b: Any, alpha: float = 1) -> Value:
    """Write a - alpha b."""
    return cx.op("Sub", cx.operand(a, cx.dtype), scaled(cx, b, alpha, cx.dtype))


@converter("aten.rsub.Tensor", "aten.rsub.Scalar")
def convert_rsub(cx: Emitter, a: Any, b: Any, alpha: float = 1) -> Value:
    """Write b - alpha a."""
    return cx.op("Sub", cx.operand(b, cx.dtype), scaled(cx, a, alpha, cx.dtype))


@converter("aten.mul.Tensor", "aten.mul.Scalar")
def convert_mul(cx: Emitter, a: Any, b: Any) -> Value:
    """Write a b; of bools, a and b."""
    return binary(cx, "And" if cx.dtype == torch.bool else "Mul", a, b)


@converter("aten.div.Tensor", "aten.div.Scalar", "aten.true_divide.Tensor")
def convert_div(cx: Emitter, a: Any, b: Any) -> Value:
    """Write a true division, of ints too."""
    if isinstance(b, (int, float)) and b != 0 and _is_power_of_two(b):
        return binary(cx, "Mul", a, 1 / b)
    return binary(cx, "Div", a, b)


def _is_power_of_two(number: float) -> bool:
    return math.frexp(number)[0] in (0.5, -0.5) and 1e-30 < abs(number) < 1e30


@converter("aten.div.Tensor_mode", "aten.div.Scalar_mode")
def convert_div_mode(cx: Emitter, a: Any, b: Any, *, rounding_mode: str | None) -> Value:
    """Write a division that rounds down ("floor"), to zero ("trunc"), or not."""
    if rounding_mode is None:
        return convert_div(cx, a, b)
    x, y = cx.operand(a, cx.dtype), cx.operand(b, cx.dtype)
    if rounding_mode == "trunc":
        quotient = cx.op("Div", x, y)
        return truncate(cx, quotient) if cx.dtype.is_floating_point else quotient
    return floor_divide(cx, x, y)


def truncate(cx: Emitter, x: Value) -> Value:
    """Return x rounded to zero."""
    return cx.op("Mul", cx.op("Sign", x), cx.op("Floor", cx.op("Abs", x)))


@converter("aten.floor_divide.default", "aten.floor_divide.Scalar")
def convert_floor_divide(cx: Emitter, a: Any, b: Any) -> Value:
    """Write a division that rounds down."""
    return floor_divide(cx, cx.operand(a, cx.dtype), cx.operand(b, cx.dtype))


def floor_divide(cx: Emitter, x: Value, y: Value) -> Value:
    """Return floor(x / y), exact as torch's: from the remainder, so that 1.0 // 0.1 is 9."""
    rest = remainder(cx, x, y)
    quotient = cx.op("Div", cx.op("Sub", x, rest), y)
    if not x.dtype.is_floating_point:
        return quotient
    by_zero = cx.op("Equal", y, cx.constant(0, y.dtype), dtype=torch.bool)
    return cx.op("Where", by_zero, cx.op("Div", x, y), cx.op("Round", quotient), dtype=x.dtype)


@converter("aten.remainder.Tensor", "aten.remainder.Scalar", "aten.remainder.Scalar_Tensor")
def convert_remainder(cx: Emitter, a: Any, b: Any) -> Value:
    """Write the remainder that has the divisor's sign."""
    return remainder(cx, cx.operand(a, cx.dtype), cx.operand(b, cx.dtype))


def remainder(cx: Emitter, x: Value, y: Value) -> Value:
    """Return x mod y with y's sign; ONNX has that for ints only."""
    if not x.dtype.is_floating_point:
        return cx.op("Mod", x, y, fmod=0)
    zero = cx.constant(0, x.dtype)
    rest = cx.op("Mod", x, y, fmod=1)
    negative = [cx.op("Less", each, zero, dtype=torch.bool) for each in (rest, y)]
    differ = cx.op("Xor", *negative)
    is_zero = cx.op("Equal", rest, zero, dtype=torch.bool)
    wrong = cx.op("And", differ, cx.op("Not", is_zero))
    return cx.op("Where", wrong, cx.op("Add", rest, y), rest, dtype=x.dtype)


@converter("aten.fmod.Tensor", "aten.fmod.Scalar")
def convert_fmod(cx: Emitter, a: Any, b: Any) -> Value:
    """Write the remainder that has the dividend's sign."""
    return cx.op("Mod", cx.operand(a, cx.dtype), cx.operand(b, cx.dtype), fmod=1)


@converter("aten.pow.Tensor_Scalar", "aten.pow.Tensor_Tensor", "aten.pow.Scalar")
def convert_pow(cx: Emitter, a: Any, b: Any) -> Value:
    """Write a power; the usual exponents as cheaper operators."""
    dtype = cx.dtype
    if isinstance(b, (int, float)) and dtype.is_floating_point:
        x = cx.operand(a, dtype)
        if b == 2:
            return cx.op("Mul", x, x)
        if b == 0.5:
            return cx.op("Sqrt", x)
        if b == -1:
            return cx.op("Reciprocal", x)
        if b == -0.5:
            return cx.op("Reciprocal", cx.op("Sqrt", x))
    return binary(cx, "Pow", a, b)


@converter("aten.atan2.default")
def convert_atan2(cx: Emitter, a: Any, b: Any) -> Value:
    """Write the angle of (b, a), from atan of the quotient and the quadrant."""
    y, x = cx.operand(a, cx.dtype), cx.operand(b, cx.dtype)
    zero, pi = cx.constant(0, y.dtype), cx.constant(math.pi, y.dtype)
    angle = cx.op("Atan", cx.op("Div", y, x))
    below = cx.op("Less", y, zero, dtype=torch.bool)
    shift = cx.op("Where", below, cx.op("Neg", pi), pi, dtype=y.dtype)
    left = cx.op("Less", x, zero, dtype=torch.bool)
    turned = cx.op("Where", left, cx.op("Add", angle, shift), angle, dtype=y.dtype)
    at_origin = [cx.op("Equal", each, zero, dtype=torch.bool) for each in (x, y)]
    return cx.op("Where", cx.op("And", *at_origin), zero, turned, dtype=y.dtype)


@converter("aten.maximum.default", "aten.max.other")
def convert_maximum(cx: Emitter, a: fx.Node, b: fx.Node) -> Value:
    """Write the larger of two."""
    return binary(cx, "Or" if cx.dtype == torch.bool else "Max", a, b)


@converter("aten.minimum.default", "aten.min.other")
def convert_minimum(cx: Emitter, a: fx.Node, b: fx.Node) -> Value:
    """Write the smaller of two."""
    return binary(cx, "And" if cx.dtype == torch.bool else "Min", a, b)


@converter("aten.fmax.default")
def convert_fmax(cx: Emitter, a: fx.Node, b: fx.Node) -> Value:
    """Write the larger of two, the other one where one is NaN."""
    return _ignoring_nan(cx, "Max", a, b)


@converter("aten.fmin.default")
def convert_fmin(cx: Emitter, a: fx.Node, b: fx.Node) -> Value:
    """Write the smaller of two, the other one where one is NaN."""
    return _ignoring_nan(cx, "Min", a, b)


def _ignoring_nan(cx: Emitter, op_type: str, a: fx.Node, b: fx.Node) -> Value:
    x, y = cx.operand(a, cx.dtype), cx.operand(b, cx.dtype)
    result = cx.op(op_type, x, y)
    if not x.dtype.is_floating_point:
        return result
    for one, other in ((x, y), (y, x)):
        result = cx.op("Where", cx.op("IsNaN", one, dtype=torch.bool), other, result, dtype=x.dtype)
    return result


@converter("aten.clamp.default", "aten.clip.default")
def convert_clamp(cx: Emitter, x: fx.Node, min: Any = None, max: Any = None) -> Value:
    """Write x limited by numbers or sizes."""
    value = cx.operand(x, cx.dtype)
    if not isinstance(min, fx.Node) and not isinstance(max, fx.Node):
        return clip(cx, value, min, max)
    return _limited(cx, value, min, max)


@converter("aten.clamp.Tensor", "aten.clip.Tensor")
def convert_clamp_tensor(cx: Emitter, x: fx.Node, min: Any = None, max: Any = None) -> Value:
    """Write x limited by tensors, broadcast."""
    return _limited(cx, cx.operand(x, cx.dtype), min, max)


@converter("aten.clamp_min.default", "aten.clamp_min.Tensor")
def convert_clamp_min(cx: Emitter, x: fx.Node, min: Any) -> Value:
    """Write max(x, min)."""
    return binary(cx, "Max", x, min)


@converter("aten.clamp_max.default", "aten.clamp_max.Tensor")
def convert_clamp_max(cx: Emitter, x: fx.Node, max: Any) -> Value:
    """Write min(x, max)."""
    return binary(cx, "Min", x, max)


def _limited(cx: Emitter, value: Value, low: Any, high: Any) -> Value:
    if low is not None:
        value = cx.op("Max", value, cx.operand(low, value.dtype))
    return value if high is None else cx.op("Min", value, cx.operand(high, value.dtype))


@converter("aten.lerp.Scalar", "aten.lerp.Tensor")
def convert_lerp(cx: Emitter, start: fx.Node, end: fx.Node, weight: Any) -> Value:
    """Write start + weight (end - start)."""
    difference = binary(cx, "Sub", end, start)
    return cx.op("Add", cx.value(start), cx.op("Mul", cx.operand(weight, cx.dtype), difference))


@converter("aten.addcmul.default")
def convert_addcmul(cx: Emitter, x: fx.Node, a: fx.Node, b: fx.Node, *, value: float = 1) -> Value:
    """Write x + value a b."""
    product = scaled(cx, a, value, cx.dtype)
    return cx.op("Add", cx.operand(x, cx.dtype), cx.op("Mul", product, cx.operand(b, cx.dtype)))


@converter("aten.addcdiv.default")
def convert_addcdiv(cx: Emitter, x: fx.Node, a: fx.Node, b: fx.Node, *, value: float = 1) -> Value:
    """Write x + value a / b."""
    dividend = scaled(cx, a, value, cx.dtype)
    return cx.op("Add", cx.operand(x, cx.dtype), cx.op("Div", dividend, cx.operand(b, cx.dtype)))


@converter("aten.hypot.default")
def convert_hypot(cx: Emitter, a: fx.Node, b: fx.Node) -> Value:
    """Write sqrt(a a + b b)."""
    return cx.op("Sqrt", cx.op("Add", binary(cx, "Mul", a, a), binary(cx, "Mul", b, b)))


@converter(
    "aten.rand.default", "aten.randn.default", "aten.rand_like.default", "aten.randn_like.default", "aten.bernoulli.p"
)
def refuse_random(cx: Emitter, *args: Any, **kwargs: Any) -> Value:
    """Refuse random numbers: an artifact gives the same result every time."""
    raise RefusalError("random numbers at inference", "call model.eval(), or give the random tensor as an input")
