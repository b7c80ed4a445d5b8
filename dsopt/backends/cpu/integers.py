"""Stored integers behind a dequantize: how a quantised weight or bias is written so that ONNX Runtime takes its integer kernels.

What ONNX Runtime 1.32 fuses, found by looking at the model that it optimises:

    Conv(DQ(u8), DQ(i8), DQ(i32)) -> Q                QLinearConv
    Gemm(DQ(u8), DQ(i8 with a zero point), DQ(i32))   QGemm, with or without a Q after it
    MatMul(DQ(u8), DQ(i8))                            QLinearMatMul before a Q, else MatMulIntegerToFloat

Its kernels take the scale of a bias for the product of the other two without looking at it, and have none for 4 bits and integer
activations: such weights are 4 bits wide in the file and become int8 when it is opened. Three of its rewrites would change numbers,
and are kept from happening:

    MatMul(float or DQ(i16), DQ(i4 or i8))       MatMulNBits, which rounds the activations to 8 bits    `write_folded`
    Conv or Gemm(DQ, float weight or bias) -> Q  weight and bias rounded to 8 and 32 bits               `kept_float`
    MatMul(DQ(u8), DQ(i8 with groups))           MatMulIntegerToFloat, which has no groups              `write_folded`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from dsopt.backends.cpu.builder import Value
from dsopt.backends.cpu.emitter import Emitter
from dsopt.backends.cpu.kernels import INT4, UINT4
from dsopt.ops.quantized import effective_scale, round_to_grid, spread_scale, storage_dtype
from dsopt.passes.quantize.semantics import clamp_bounds, is_move

_DSOPT = torch.ops.dsopt
BYTES = (torch.int8, torch.uint8)
_BIAS_LIMIT = 1 << 30
_BIAS_SHARE = 1 / 8
"""The largest step of a bias, in steps of the result, to which a float bias is rounded."""


@dataclass(frozen=True, eq=False)
class Integers:
    """A stored tensor of integers and its grid; arguments as those of `dsopt::dequantize_channel`.

    name: of the values in the file.  scale: (), (channels,) or (channels, groups).  zero: as scale, of the values' dtype.
    """

    name: str
    values: Tensor
    scale: Tensor
    zero: Tensor
    axis: int
    group: int
    bits: int

    @property
    def block_axis(self) -> int:
        """Return the axis that a scale of more than one element runs along."""
        return 1 if self.group else self.axis % max(self.values.dim(), 1)

    @property
    def is_even(self) -> bool:
        """Tell whether all channels have one zero point, without which QLinearConv refuses to run."""
        return bool((self.zero == self.zero.reshape(-1)[0]).all())

    def real(self) -> Tensor:
        """Return the numbers that the integers stand for, in float64."""
        scale, zero = (spread_scale(each, self.values.shape, self.axis, self.group) for each in (self.scale, self.zero))
        return (self.values.double() - zero.double()) * scale.double()


def stored_integers(cx: Emitter, node: object) -> Integers | None:
    """Return what is stored behind a dequantize, or behind the rounding of a stored float; None for any other node."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return None
    args: Any = node.args
    if node.target is _DSOPT.dequantize_channel.default:
        values, scale, zero = cx.weight(args[0]), cx.weight(args[1]), cx.weight(args[2])
        if values is None or scale is None or (zero is None and args[2] is not None):
            return None
        zero = torch.zeros_like(scale, dtype=torch.int32) if zero is None else zero
        return _checked(cx.weight_name(args[0]), values, scale.float(), zero, *args[3:])
    if node.target is _DSOPT.dequantize.default:
        values = cx.weight(args[0])
        if values is None:
            return None
        bits = 8 * values.element_size()
        return _checked(cx.weight_name(args[0]), values, torch.tensor(args[1]), torch.tensor(args[2]), 0, 0, bits)
    return _rounded(cx, args) if node.target is _DSOPT.fake_quantize.default else None


def _rounded(cx: Emitter, args: Any) -> Integers | None:
    """Round a stored float as fake_quantize does."""
    weight, scale, zero = (cx.weight(each) for each in args[:3])
    axis, group, low, high, power_of_two = args[3:]
    if weight is None or scale is None or zero is None or high - low > 1 << 16:
        return None
    scale = effective_scale(scale.float(), group, power_of_two)
    zero = zero.expand(scale.shape) if zero.dim() != 1 or not group else zero[:, None].expand(scale.shape)
    step, shift = (spread_scale(each, weight.shape, axis, group) for each in (scale, zero))
    values = round_to_grid(weight, step, shift, low, high).to(storage_dtype(low, high))
    bits = 4 if low >= -8 and high <= 7 else 8 * values.element_size()
    return _checked(f"{cx.weight_name(args[0])}.int{bits}", values, scale, zero, axis, group, bits)


def _checked(
    name: str, values: Tensor, scale: Tensor, zero: Tensor, axis: int, group: int, bits: int
) -> Integers | None:
    """Return the integers, None where ONNX has no such zero point: then it is subtracted by an operator of its own."""
    limits = torch.iinfo(values.dtype)
    low, high = (0, 0) if values.dtype == torch.int32 else (limits.min, limits.max)
    if zero.numel() and not low <= int(zero.min()) <= int(zero.max()) <= high:
        return None
    return Integers(name, values, scale, zero.expand(scale.shape).to(values.dtype), axis, group, bits)


# ---- writing ----


def write(cx: Emitter, stored: Integers, is_turned: bool = False, is_widened: bool = False) -> Value:
    """Append DequantizeLinear of stored integers.

    is_turned: of a matrix with its axes swapped.  is_widened: 4 bits become int8 first, for kernels that have no 4 bits.
    """
    values, scale, zero, axis = stored.values, stored.scale, stored.zero, stored.block_axis
    if stored.group and values.dim() > 2:  # ONNX wants a scale of every dim but the blocked one
        shape = (values.shape[0], scale.shape[1], *values.shape[2:])
        scale, zero = (each.reshape(*each.shape, *[1] * (values.dim() - 2)).expand(shape) for each in (scale, zero))
    if is_turned:
        values, axis = values.mT, 1 - axis
        scale, zero = (each.mT if each.dim() == 2 else each for each in (scale, zero))
    suffix = ".transposed" if is_turned else ""
    value = cx.derive(f"{stored.name}{suffix}", values, _narrow(stored))
    if is_widened and value.dtype not in BYTES:
        value = cx.cast(value, stored.values.dtype)
    zeros = None
    if value.dtype != torch.int32:
        # Not shared: on CPUs without VNNI, ONNX Runtime rewrites those of weights one by one.
        narrow = _narrow(stored) if value.dtype not in BYTES else None
        zeros = cx.store(cx.unique(f"{stored.name}.zero_point"), zero.to(stored.values.dtype), narrow)
    return cx.op(
        "DequantizeLinear", value, cx.constant(scale, torch.float32), zeros, dtype=torch.float32,
        axis=axis if scale.dim() else None, block_size=stored.group or None,
    )  # fmt: skip


def _narrow(stored: Integers) -> torch.dtype | None:
    """Return the 4-bit dtype that holds values and zero points, None if they are to be 8 bits or more wide."""
    if stored.bits != 4 or not stored.values.numel():
        return None
    found = [int(bound) for each in (stored.values, stored.zero) for bound in (each.min(), each.max())]
    if min(found) >= -8 and max(found) <= 7:
        return INT4
    return UINT4 if min(found) >= 0 and max(found) <= 15 else None


def write_filter(cx: Emitter, node: fx.Node, is_taken: bool) -> tuple[Value, bool]:
    """Return the weight of a convolution, and whether it is integers behind DequantizeLinear.

    is_taken: its activation is on a grid of 8 bits.
    """
    stored = stored_integers(cx, node)
    if stored is None or not is_taken:
        return cx.value(node), stored is not None
    if stored.group or (stored.scale.dim() and stored.axis % stored.values.dim() != 0):
        return write_folded(cx, stored), False
    if stored.is_even:
        return write(cx, stored, is_widened=True), True
    shifted = stored.values.int() - spread_scale(stored.zero.int(), stored.values.shape, stored.axis, stored.group)
    if stored.values.dtype in BYTES and int(shifted.min()) >= -128 and int(shifted.max()) <= 127:
        centred = Integers(
            f"{stored.name}.centred", shifted.to(torch.int8), stored.scale, torch.zeros_like(stored.zero, dtype=torch.int8),
            stored.axis, stored.group, 8,
        )  # fmt: skip
        return write(cx, centred), True
    return write_folded(cx, stored), False


def write_folded(cx: Emitter, stored: Integers) -> Value:
    """Append operators that give a stored weight as floats, which ONNX Runtime runs once, when it opens the model.

    It does not take them for the quantised weight of an integer kernel, which would compute something else.
    """
    value = cx.cast(cx.derive(stored.name, stored.values, _narrow(stored)), torch.float32)
    if bool(stored.zero.any()):
        value = cx.op("Sub", value, _spread(cx, stored, stored.zero))
    return cx.op("Mul", value, _spread(cx, stored, stored.scale))


def _spread(cx: Emitter, stored: Integers, grid: Tensor) -> Value:
    """Return a scale or zero point, small in the file, as floats that broadcast against the values."""
    shape = stored.values.shape
    if not stored.group:
        return cx.constant(spread_scale(grid, shape, stored.axis, 0), torch.float32)
    groups = cx.vector(number // stored.group for number in range(shape[1]))
    spread = cx.op("Gather", cx.constant(grid, torch.float32), groups, axis=1)
    return spread if len(shape) == 2 else cx.unsqueeze(spread, *range(2, len(shape)))


# ---- what stands around a weight ----


def kept_float(cx: Emitter, x: fx.Node, y: Value) -> Value:
    """Append a sum of one operand to the result of a layer with a float weight or bias, if its activation is on some grid.

    ONNX Runtime would round weight and bias if a QuantizeLinear followed the layer, even of a layer that the user keeps in float.
    """
    return cx.op("Sum", y) if _is_on_grid(x) else y


def _is_on_grid(node: object) -> bool:
    while isinstance(node, fx.Node) and node.op == "call_function":
        if node.target in (_DSOPT.dequantize.default, _DSOPT.fake_quantize.default):
            return True
        if not is_move(node):
            return False
        node = node.args[0]
    return False


def is_inside(cx: Emitter, node: object) -> bool:
    """Tell whether an activation is on a grid of 8 bits, so that ONNX Runtime may compute with its integers."""
    return _input_step(cx, node) is not None


def _input_step(cx: Emitter, node: object) -> float | None:
    while isinstance(node, fx.Node) and node.op == "call_function":
        args: Any = node.args
        if node.target is _DSOPT.dequantize.default:
            return float(args[1]) if args[0].meta["val"].dtype in BYTES else None
        if node.target is _DSOPT.fake_quantize.default:
            return _fake_step(cx, args)
        if not is_move(node):
            return None
        node = args[0]
    return None


def _fake_step(cx: Emitter, args: Any) -> float | None:
    scale = cx.weight(args[1])
    if scale is None or scale.dim() or args[6] - args[5] > 255:
        return None
    return float(effective_scale(scale.float(), 0, args[7]))


def _output_step(cx: Emitter, node: fx.Node) -> float | None:
    """Return the scale to which a result is rounded, after a clamp at most; None if it stays float or is also used before."""
    users = list(node.users)
    while len(users) == 1 and clamp_bounds(users[0]) is not None:
        users = list(users[0].users)
    if len(users) != 1 or users[0].op != "call_function":
        return None
    args: Any = users[0].args
    if users[0].target is _DSOPT.quantize.default:
        return float(args[1])
    return _fake_step(cx, args) if users[0].target is _DSOPT.fake_quantize.default else None


def write_bias(cx: Emitter, x: fx.Node, weight: fx.Node, bias: fx.Node | None) -> tuple[Value | None, bool]:
    """Return the bias of a layer, and whether it is int32 in steps of the products of input and weight.

    A float bias before a rounded result becomes such integers: it moves by a sixteenth of a step of the result at most.
    """
    if bias is None:
        return None, False
    step, stored, given = _input_step(cx, x), stored_integers(cx, weight), stored_integers(cx, bias)
    real = given.real() if given is not None else cx.weight(bias)
    if step is None or stored is None or real is None or stored.group or (stored.scale.dim() and stored.axis != 0):
        return cx.value(bias), False
    unit = (stored.scale.double() * step).float()
    if given is not None and given.values.dtype == torch.int32 and _is_near(given.scale, unit):
        return cx.value(bias), True
    name = given.name if given is not None else cx.weight_name(bias)
    result = _output_step(cx, cx.node)
    integers = torch.round(real.double() / unit.double())
    if result is None or float(unit.max()) > _BIAS_SHARE * result or float(integers.abs().max()) >= _BIAS_LIMIT:
        return cx.derive(f"{name}.real", real.float()), False
    zero = torch.zeros_like(unit, dtype=torch.int32)
    return write(cx, Integers(f"{name}.int32", integers.to(torch.int32), unit, zero, 0, 0, 32)), True


def _is_near(scale: Tensor, unit: Tensor) -> bool:
    return scale.dim() <= unit.dim() and bool(torch.isclose(scale, unit, rtol=1e-5, atol=0.0).all())
