"""Rounding to grids of integers and back: QuantizeLinear and DequantizeLinear, placed so that ONNX Runtime fuses its integer kernels.

Activations of 8 bits are written as uint8, 128 above the int8 of the program, with zero points moved by as much: the numbers are
the same, and ONNX Runtime 1.32 fails to open models of opset 21 in which it moves a DequantizeLinear of int8 past a reshape.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from dsopt.backends.cpu.builder import Value
from dsopt.backends.cpu.emitter import Emitter
from dsopt.backends.cpu.integers import stored_integers, write
from dsopt.backends.cpu.registry import RefusalError, converter, operator_key
from dsopt.ops.quantized import effective_scale, quantize, spread_scale, storage_dtype

OFFSET = 128
"""Between int8 and the uint8 that is written in its place."""

_MOVES = frozenset(
    f"aten.{name}"
    for name in (
        "reshape.default", "view.default", "permute.default", "transpose.int", "t.default", "flatten.using_ints", "squeeze.dim",
        "squeeze.dims", "unsqueeze.default", "slice.Tensor", "select.int", "expand.default",
    )
)  # fmt: skip
"""Operators that may stand between a quantize that is written as uint8 and its dequantize."""


@converter("dsopt.quantize.default")
def convert_quantize(cx: Emitter, x: fx.Node, scale: float, zero_point: int, low: int, high: int) -> Value:
    """Write the rounding to a grid per tensor."""
    dtype = storage_dtype(low, high)
    offset = OFFSET if dtype == torch.int8 and _is_inner(cx.node) else 0
    value, low, high = _without_clamp(cx, x, scale, zero_point, low, high)
    return rounded(cx, value, scale, zero_point + offset, low + offset, high + offset, torch.uint8 if offset else dtype)


def rounded(cx: Emitter, value: Value, scale: float, zero_point: int, low: int, high: int, dtype: torch.dtype) -> Value:
    """Append clamp(rint(value / scale) + zero_point, low, high) of a float value as integers of a dtype."""
    bounds = torch.iinfo(dtype)
    value, step = cx.cast(value, torch.float32), cx.constant(scale, torch.float32)
    if dtype == torch.int32 or not bounds.min <= zero_point <= bounds.max:  # QuantizeLinear has no such form
        steps = cx.op("Add", cx.op("Round", cx.op("Div", value, step)), cx.constant(zero_point, torch.float32))
        limits = [cx.constant(limit, torch.float32) for limit in (low, high)]
        return cx.cast(cx.op("Clip", steps, *limits), dtype)
    result = cx.op("QuantizeLinear", value, step, cx.constant(zero_point, dtype), dtype=dtype)
    return _limited(cx, result, low, high)


def _limited(cx: Emitter, value: Value, low: int, high: int) -> Value:
    """Limit integers to a range that is narrower than their dtype."""
    bounds = torch.iinfo(value.dtype)
    if (low, high) == (bounds.min, bounds.max):
        return value
    return cx.op("Clip", value, cx.constant(low, value.dtype), cx.constant(high, value.dtype))


def _is_inner(node: fx.Node) -> bool:
    """Tell whether nothing but dequantize sees the integers of a node, as they are or moved."""
    pending = list(node.users)
    while pending:
        user = pending.pop()
        if user.op == "call_function" and operator_key(user.target) in _MOVES:
            pending += list(user.users)
        elif user.op != "call_function" or user.target is not torch.ops.dsopt.dequantize.default:
            return False
    return True


def _without_clamp(
    cx: Emitter, x: fx.Node, scale: float, zero_point: int, low: int, high: int
) -> tuple[Value, int, int]:
    """Return what stands before a ReLU or a Clip, and the range that it leaves: rounding keeps the order, so the two commute.

    ONNX Runtime fuses a convolution with the QuantizeLinear right after it, and with a Relu between only for some zero points.
    """
    value = cx.value(x)
    while len(x.users) == 1:
        node = next((each for each in reversed(cx.nodes) if value.name in each.outputs), None)
        if node is None or node.op_type not in ("Relu", "Clip"):
            break
        limits = [0.0, torch.inf]
        if node.op_type == "Clip":
            given = [*node.inputs[1:], "", ""][:2]
            stored = [cx.initializers.get(name) for name in given]
            if any(name and tensor is None for name, tensor in zip(given, stored, strict=True)):
                break
            limits = [
                -torch.inf if stored[0] is None else float(stored[0]),
                torch.inf if stored[1] is None else float(stored[1]),
            ]
        ends = quantize(torch.tensor(limits), scale, zero_point, low, high)
        low, high = int(ends[0]), int(ends[1])
        value = Value(node.inputs[0], value.dtype)
    return value, low, high


@converter("dsopt.dequantize.default")
def convert_dequantize(cx: Emitter, q: fx.Node, scale: float, zero_point: int) -> Value:
    """Write the numbers that integers stand for, per tensor."""
    stored = stored_integers(cx, cx.node)
    if stored is not None:
        return write(cx, stored)
    value = cx.value(q)
    offset = OFFSET if value.dtype == torch.uint8 and q.meta["val"].dtype == torch.int8 else 0
    return real(cx, value, torch.tensor(scale), torch.tensor(zero_point + offset))


def real(cx: Emitter, value: Value, scale: Tensor, zero: Tensor) -> Value:
    """Append the float32 numbers that computed integers stand for. scale, zero: one number, or of a shape that broadcasts."""
    limits = (0, 0) if value.dtype == torch.int32 else (torch.iinfo(value.dtype).min, torch.iinfo(value.dtype).max)
    step = cx.constant(scale, torch.float32)
    if scale.dim() == 0 and value.dtype != torch.int64 and limits[0] <= int(zero) <= limits[1]:
        zeros = None if value.dtype == torch.int32 else cx.constant(zero, value.dtype)
        return cx.op("DequantizeLinear", value, step, zeros, dtype=torch.float32)
    wide = cx.cast(value, torch.int32)
    if bool(zero.any()):
        wide = cx.op("Sub", wide, cx.constant(zero, torch.int32))
    return cx.op("Mul", cx.cast(wide, torch.float32), step)


@converter("dsopt.dequantize_channel.default")
def convert_dequantize_channel(
    cx: Emitter, q: fx.Node, scale: fx.Node, zero_point: fx.Node | None, axis: int, group: int, bits: int
) -> Value:
    """Write the numbers that integers stand for, per channel or group."""
    stored = stored_integers(cx, cx.node)
    if stored is not None:
        return write(cx, stored)
    steps, zeros = cx.weight(scale), cx.weight(zero_point)
    if steps is None or (zero_point is not None and zeros is None):
        raise RefusalError("its scale is computed", "keep scales and zero points as stored tensors")
    shape = q.meta["val"].shape
    if group and not isinstance(shape[1], int):
        raise RefusalError("the axis of its groups varies", "fix this size when capturing, or with --dim NAME=VALUE")
    zeros = torch.zeros_like(steps, dtype=torch.int32) if zeros is None else zeros
    value = cx.value(q)
    return real(cx, value, spread_scale(steps, shape, axis, group), spread_scale(zeros, shape, axis, group))


@converter("dsopt.fake_quantize.default")
def convert_fake_quantize(
    cx: Emitter, x: fx.Node, scale: fx.Node, zero_point: fx.Node, axis: int, group: int, low: int, high: int, power_of_two: bool
) -> Value:  # fmt: skip
    """Write the rounding to a grid and back, of a program that is prepared or trained for quantisation."""
    stored = stored_integers(cx, cx.node)
    if stored is not None:
        return write(cx, stored)
    steps, zeros = cx.weight(scale), cx.weight(zero_point)
    if steps is None or zeros is None:
        raise RefusalError("its scale is computed", "keep scales and zero points as stored tensors")
    steps = effective_scale(steps.float(), group, power_of_two)
    if steps.dim() == 0:
        value, low, high = _without_clamp(cx, x, float(steps), int(zeros), low, high)
        return round_trip(cx, value, float(steps), int(zeros), low, high)
    shape = x.meta["val"].shape
    if group and not isinstance(shape[1], int):
        raise RefusalError("the axis of its groups varies", "fix this size when capturing, or with --dim NAME=VALUE")
    zeros = zeros if zeros.dim() != 1 or not group else zeros[:, None].expand(steps.shape)
    grids = (spread_scale(each, shape, axis, group) for each in (steps, zeros))
    step, zero = (cx.constant(each, torch.float32) for each in grids)
    whole = cx.op("Add", cx.op("Round", cx.op("Div", cx.value(x), step)), zero)
    whole = cx.op("Clip", whole, cx.constant(low, torch.float32), cx.constant(high, torch.float32))
    return cx.op("Mul", cx.op("Sub", whole, zero), step)


def round_trip(cx: Emitter, value: Value, scale: float, zero_point: int, low: int, high: int) -> Value:
    """Append the rounding of a float value to a grid per tensor, and back."""
    dtype, offset = storage_dtype(low, high), 0
    if dtype == torch.int8:
        dtype, offset = torch.uint8, OFFSET
    integers = rounded(cx, value, scale, zero_point + offset, low + offset, high + offset, dtype)
    return real(cx, integers, torch.tensor(scale), torch.tensor(zero_point + offset))
