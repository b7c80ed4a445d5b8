"""QuantizeLinear and DequantizeLinear, as the operators of dsopt that later passes make integer kernels of.

What these cannot say, such as scales that are computed, is written as arithmetic.
"""

from __future__ import annotations

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor

from dsopt.frontend.onnx_reader.call import Call, axis_in, to_type
from dsopt.frontend.onnx_reader.lower_dequantized import BITS
from dsopt.frontend.onnx_reader.problems import MalformedError
from dsopt.frontend.onnx_reader.registry import operator
from dsopt.frontend.onnx_reader.tensors import DTYPES

INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.uint16)
ROUNDED = (torch.int8, torch.uint8, torch.int16)
"""What may be rounded to; a grid of uint16 is read where it is stored only."""

_NEAREST = "int8, uint8 or int16"


def _refuse(call: Call) -> tuple[str, str] | None:
    wanted = call.integer("output_dtype", 0)
    if wanted and DTYPES.get(wanted) not in ROUNDED:
        known = wanted in TensorProto.DataType.values()
        return f"rounding to {TensorProto.DataType.Name(wanted) if known else f'type number {wanted}'}", _NEAREST
    if call.integer("block_size", 0):
        return "rounding by blocks at run time", "scales per tensor or axis"
    return None


@operator("QuantizeLinear", refuse=_refuse)
def quantize_linear(call: Call) -> Tensor:
    """clamp(rint(x / scale) + zero point), per tensor or along an axis."""
    x, dtype = call.tensor(0), _integer_type(call)
    bounds = torch.iinfo(dtype)
    grid = _grid(call)
    if grid is not None and x.dtype == torch.float32:
        rounded: Tensor = torch.ops.dsopt.quantize(x, *grid, bounds.min, bounds.max)
        return rounded
    scale = _along_axis(call, call.tensor(1), x)
    if not x.is_floating_point() or not scale.is_floating_point():
        raise call.unsupported(f"rounding of {x.dtype}".replace("torch.", ""), "float32")
    steps = torch.round(x / scale)
    if call.has(2):
        steps = steps + _along_axis(call, to_type(call.tensor(2), steps.dtype), x)
    return torch.clamp(steps, bounds.min, bounds.max).to(dtype)


def _integer_type(call: Call) -> torch.dtype:
    wanted = DTYPES.get(call.integer("output_dtype", 0))
    if wanted is None and not call.has(2):
        return torch.uint8
    dtype = wanted if wanted is not None else call.tensor(2).dtype
    if dtype not in ROUNDED:
        raise call.unsupported(f"rounding to {dtype}".replace("torch.", ""), _NEAREST)
    return dtype


@operator("DequantizeLinear")
def dequantize_linear(call: Call) -> Tensor:
    """(q - zero point) * scale, per tensor, along an axis or by blocks of it."""
    q = call.tensor(0)
    grid = _grid(call)
    if q.is_floating_point() or q.dtype in (torch.int64, torch.bool):
        raise call.unsupported(f"integers of type {q.dtype}".replace("torch.", ""), f"{_NEAREST} or int32")
    real: Tensor
    if grid is not None:
        real = torch.ops.dsopt.dequantize(q, *grid)
        return real
    scale, zero, group = call.tensor(1), call.optional(2), call.integer("block_size", 0)
    if group < 0:
        raise MalformedError(f"attribute 'block_size' is {group}")
    if _is_plain(call, q, scale, zero, group):
        axis = 0 if group else axis_in(call.integer("axis", 1), q.dim())
        real = torch.ops.dsopt.dequantize_channel(q, scale, zero, axis, group, _bits(call, q))
        return real
    values = q.to(torch.int32)
    if zero is not None:
        values = values - _along_axis(call, to_type(zero, torch.int32), q)
    return values.to(scale.dtype) * _along_axis(call, scale, q)


def _grid(call: Call) -> tuple[float, int] | None:
    """Return scale and zero point where they are stored, one for the whole tensor, and float32 and a whole number."""
    numbers: list[float] = []
    for index, dtypes in ((1, (torch.float32,)), (2, (*INTEGERS, torch.int32))):
        if index == 2 and not call.has(2):
            numbers.append(0)
            continue
        found = call.known(index)
        if found is None or found.array.size != 1 or found.dtype not in dtypes:
            return None
        numbers.append(found.items()[0])
    # numbers of float32 are kept as their shortest decimals
    return float(np.float32(numbers[0])), int(numbers[1])


def _is_plain(call: Call, q: Tensor, scale: Tensor, zero: Tensor | None, group: int) -> bool:
    """Tell whether dequantize_channel takes these scales: stored, of a channel, or of groups of the inputs of a channel."""
    if not call.is_stored(1) or scale.dtype != torch.float32 or (zero is not None and zero.dtype != torch.int32):
        return False
    axis = axis_in(call.integer("axis", 1), q.dim())
    shape = (q.shape[0], -(-q.shape[1] // group)) if group and q.dim() > 1 else (q.shape[axis],)
    grids = [scale] if zero is None else [scale, zero]
    fits = all(tuple(each.shape) == tuple(shape) for each in grids)
    return fits and (not group or (axis == 1 and isinstance(q.shape[1], int)))


def _bits(call: Call, q: Tensor) -> int:
    """Return how wide integers are where code packs them; `lower_dequantized` says it of stored ones."""
    return 4 if q.dtype == torch.int8 and call.integer(BITS, 8) == 4 else 8 * q.dtype.itemsize


def _along_axis(call: Call, grid: Tensor, x: Tensor) -> Tensor:
    """Return scales or zero points in a shape that broadcasts against x. Raises MalformedError where they do not fit."""
    if grid.numel() == 1 and grid.dim() <= 1:
        return grid.reshape(())
    axis, block = axis_in(call.integer("axis", 1), x.dim()), call.integer("block_size", 0)
    if block:
        if grid.dim() != x.dim() or grid.shape[axis] != -(-x.shape[axis] // block):
            raise MalformedError(f"its scales have shape {list(grid.shape)}")
        return grid.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    if grid.dim() != 1 or grid.shape[0] != x.shape[axis]:
        raise MalformedError(f"its scales have shape {list(grid.shape)}")
    return grid.reshape([-1 if each == axis else 1 for each in range(x.dim())])
