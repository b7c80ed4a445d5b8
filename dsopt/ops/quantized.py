"""quantize, dequantize and fake_quantize: the quantised form of a program, as training, ONNX and the integer code see it.

    fake_quantize(x)  =  dequantize(quantize(x))     bit for bit

Integers of up to 8 bits are stored as int8 (uint8 where the range says so), of 16 as int16, of 32, which biases have, as int32.
A scale is per tensor, per channel along an axis, or per group of `group` neighbours along that axis.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dsopt.ops.library import register_gradient, register_opaque
from dsopt.ops.rounding import float_bounds

GROUP_LEVELS = 255
"""The scale of a group is a whole multiple, 1 to this, of its channel's smallest step (Dai et al. 2021, "VS-Quant", section 4.4)."""

SMALLEST_SCALE = 2.0**-100
"""Scales below this are taken for it, so that no quotient overflows."""


def storage_dtype(low: int, high: int) -> torch.dtype:
    """Return the dtype that holds integers low..high. Raises ValueError if none of 8 to 32 bits does."""
    for dtype in (torch.int8, torch.uint8, torch.int16, torch.int32):
        bounds = torch.iinfo(dtype)
        if bounds.min <= low <= high <= bounds.max:
            return dtype
    raise ValueError(f"{low} to {high} is no range of integers of at most 32 bits")


def round_to_grid(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """Return clamp(rint(x / scale) + zero_point, low, high), still as floats; NaN stays NaN."""
    return torch.clamp(torch.round(x / scale) + zero_point, *float_bounds(low, high))


# ---- scales ----


def effective_scale(scale: Tensor, group: int, power_of_two: bool) -> Tensor:
    """Return the scale that is used in the place of a stored or learned one: positive, on the grid that integer code can follow.

    power_of_two: the nearest power of two.  group > 0: the last axis of `scale` holds the groups of a channel, and their scales
    become whole multiples of the channel's largest divided by `GROUP_LEVELS`.
    """
    scale = scale.abs().clamp_min(SMALLEST_SCALE)
    if power_of_two:
        scale = torch.exp2(torch.round(torch.log2(scale)))
    if group > 0:
        step = scale.amax(-1, keepdim=True) / GROUP_LEVELS
        scale = torch.round(scale / step).clamp(1, GROUP_LEVELS) * step
    return scale


def spread_scale(scale: Tensor, shape: torch.Size | tuple[int, ...], axis: int, group: int) -> Tensor:
    """Return a scale (or zero point) that broadcasts against a tensor of `shape`.

    scale: () per tensor; (shape[axis],) per channel; (shape[0], ceil(shape[1] / group)) per group of inputs of a weight (N, K, ...),
    for which axis is 0.
    """
    if scale.dim() == 0:
        return scale
    if group > 0:
        repeated = scale.repeat_interleave(group, 1)[:, : shape[1]]
        return repeated.reshape(*repeated.shape, *[1] * (len(shape) - 2))
    return scale.reshape(*[-1 if dim == axis % len(shape) else 1 for dim in range(len(shape))])


# ---- quantize, dequantize ----


def quantize(x: Tensor, scale: float, zero_point: int, low: int, high: int) -> Tensor:
    """Return the nearest integers, low..high, of float32 x per tensor; NaN becomes the zero point. See `dsopt.ops.rounding`."""
    step = x.new_tensor(scale, dtype=torch.float32)  # by a plain number, a GPU would multiply with its reciprocal
    steps = torch.round(x.to(torch.float32) / step)
    steps = torch.where(steps.isnan(), 0.0, steps) + zero_point
    return torch.clamp(steps, *float_bounds(low, high)).to(storage_dtype(low, high))


def dequantize(q: Tensor, scale: float, zero_point: int) -> Tensor:
    """Return the float32 numbers that integers stand for, per tensor."""
    return (q.to(torch.int32) - zero_point).to(torch.float32) * scale


def dequantize_channel(q: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int, group: int, bits: int) -> Tensor:
    """Return the float32 numbers that stored integers stand for, per channel or group (see `spread_scale`).

    bits: 4, 8, 16 or 32, how wide the integers are where code packs them; 4 are held in int8 here.  zero_point: as scale, int32.
    """
    values = q.to(torch.int32)
    if zero_point is not None:
        values = values - spread_scale(zero_point, q.shape, axis, group)
    return values.to(torch.float32) * spread_scale(scale, q.shape, axis, group)


def _float_like(q: Tensor, *rest: Any) -> Tensor:
    return torch.empty(q.shape, dtype=torch.float32, device=q.device)


register_opaque(
    "quantize(Tensor x, float scale, int zero_point, int low, int high) -> Tensor",
    quantize,
    lambda x, scale, zero_point, low, high: torch.empty(x.shape, dtype=storage_dtype(low, high), device=x.device),
)
register_opaque("dequantize(Tensor q, float scale, int zero_point) -> Tensor", dequantize, _float_like)
register_opaque(
    "dequantize_channel(Tensor q, Tensor scale, Tensor? zero_point, int axis, int group, int bits) -> Tensor",
    dequantize_channel,
    _float_like,
)


# ---- fake_quantize ----


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, group: int, low: int, high: int, power_of_two: bool
) -> Tensor:
    """Return x rounded to the grid of a quantised tensor, as float32.

    scale, zero_point: float32 of the shapes of `spread_scale`; the zero points are whole numbers.  Differentiable in x, straight
    through inside of the range (Bengio et al. 2013), and in scale (Esser et al. 2020, "Learned step size quantization", equation
    3, with the gradient scaled as in section 2.2).
    """
    used, zero = _used(x, scale, zero_point, axis, group, power_of_two)
    return (round_to_grid(x, used, zero, low, high) - zero) * used


def _used(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, group: int, power_of_two: bool
) -> tuple[Tensor, Tensor]:
    used = spread_scale(effective_scale(scale, group, power_of_two), x.shape, axis, group)
    return used, spread_scale(zero_point, x.shape, axis, 0 if zero_point.dim() == 1 else group)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, scale, zero_point, *ctx.options = inputs
    ctx.save_for_backward(x, scale, zero_point)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, scale, zero_point = ctx.saved_tensors
    axis, group, low, high, power_of_two = ctx.options
    used, zero = _used(x, scale, zero_point, axis, group, power_of_two)
    steps = x / used
    rounded = torch.round(steps) + zero
    inside = (rounded >= low) & (rounded <= high)
    to_scale = None
    if ctx.needs_input_grad[1]:
        slope = torch.where(inside, torch.round(steps) - steps, rounded.clamp(low, high) - zero)
        elements = x.numel() // max(scale.numel(), 1)
        # activations come in batches, and the step must not move further where a batch is larger
        elements = elements if scale.dim() else elements // max(x.shape[0] if x.dim() else 1, 1)
        to_scale = _sum_like(grad * slope, scale, axis, group) / math.sqrt(max(elements, 1) * high)
        to_scale = to_scale * torch.where(scale < 0, -1.0, 1.0)
    return (torch.where(inside, grad, 0.0) if ctx.needs_input_grad[0] else None, to_scale, *[None] * 6)


def _sum_like(values: Tensor, scale: Tensor, axis: int, group: int) -> Tensor:
    """Sum the elements that share an element of the scale."""
    if scale.dim() == 0:
        return values.sum()
    if group > 0:
        rows = values.reshape(values.shape[0], values.shape[1], -1).sum(-1)
        padding = scale.shape[1] * group - rows.shape[1]
        return torch.nn.functional.pad(rows, (0, padding)).reshape(*scale.shape, group).sum(-1)
    return values.movedim(axis, 0).reshape(scale.shape[0], -1).sum(1)


register_opaque(
    "fake_quantize(Tensor x, Tensor scale, Tensor zero_point, int axis, int group, int low, int high, bool power_of_two) -> Tensor",
    fake_quantize,
    lambda x, *rest: torch.empty_like(x),
)
register_gradient("fake_quantize", _gradient, _keep)
