"""Shapes: asking for them, computing with them, and changing them without touching the elements."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dsopt.frontend.onnx_reader.call import Call, axis_in, to_type
from dsopt.frontend.onnx_reader.problems import MalformedError
from dsopt.frontend.onnx_reader.registry import operator
from dsopt.frontend.onnx_reader.tensors import torch_dtype
from dsopt.frontend.onnx_reader.values import MAX_KNOWN, Constant, Known, Value, known

# ---- from nothing ----


@operator("Constant")
def constant(call: Call) -> Value:
    """Return what the file stores."""
    for name, dtype in (("value_float", torch.float32), ("value_floats", torch.float32)):
        if name in call.node.attributes:
            return torch.tensor(call.node.attributes[name], dtype=dtype)
    for name in ("value_int", "value_ints"):
        if name in call.node.attributes:
            return torch.tensor(call.node.attributes[name], dtype=torch.int64)
    stored = call.stored("value")
    if stored is None:
        raise call.unsupported("Constant of text or of a sparse tensor", "a dense tensor of numbers")
    return stored.tensor


def _fill(call: Call) -> tuple[Any, torch.dtype]:
    stored = call.stored("value")
    if stored is None:
        return 0.0, torch.float32
    if stored.numbers is None or stored.numbers.array.size != 1:
        raise MalformedError("attribute 'value' is not one number")
    return stored.numbers.items()[0], stored.tensor.dtype


def _known_constant_of_shape(call: Call) -> Known | None:
    shape = call.known(0)
    value, dtype = _fill(call)
    sizes = shape.items() if shape is not None else []
    # A vector of a fixed length is most often a shape in the making; anything else is better one node.
    if len(sizes) > 1 or not all(isinstance(size, int) and 0 <= size <= 64 for size in sizes) or dtype != torch.int64:
        return None
    return known([value] * sizes[0] if sizes else value, dtype)


@operator("ConstantOfShape", known=_known_constant_of_shape)
def constant_of_shape(call: Call) -> Tensor:
    """Fill a new tensor."""
    value, dtype = _fill(call)
    return torch.full(_sizes(call.numbers(0)), value, dtype=dtype)


def _sizes(numbers: list[Any]) -> list[Any]:
    if any(isinstance(number, int) and number < 0 for number in numbers):
        raise MalformedError(f"a shape of {numbers} is negative")
    return numbers


def _known_range(call: Call) -> Known | None:
    start, limit, delta = (call.number(index) for index in range(3))
    if not all(isinstance(item, int) for item in (start, limit, delta)) or not delta:
        return None
    count = len(range(start, limit, delta))
    return known(list(range(start, limit, delta)), _number_type(call, 0)) if count <= MAX_KNOWN else None


def _number_type(call: Call, index: int) -> torch.dtype:
    value = call.value(index)
    if isinstance(value, Known):
        return value.dtype
    return value.tensor.dtype if isinstance(value, Constant) else call.tensor(index).dtype


@operator("Range", known=_known_range)
def arange(call: Call) -> Tensor:
    """Count from start to limit."""
    start, limit, delta = (call.number(index) for index in range(3))
    if isinstance(delta, (int, float)) and not delta:
        raise MalformedError("its step is 0")
    return torch.arange(start, limit, delta, dtype=_number_type(call, 0))


@operator("EyeLike")
def eye_like(call: Call) -> Tensor:
    """Put ones on a diagonal."""
    x = call.tensor(0)
    if x.dim() != 2:
        raise MalformedError("its input is no matrix")
    dtype = torch_dtype(call.integer("dtype", 0), "the result") if "dtype" in call.node.attributes else x.dtype
    rows, columns = torch.arange(x.shape[0]).unsqueeze(1), torch.arange(x.shape[1]).unsqueeze(0)
    return to_type(columns - rows == call.integer("k", 0), dtype)


# ---- questions ----


@operator("Shape")
def shape_of(call: Call) -> Known:
    """Return a tensor's sizes, symbolic ones as they are."""
    value = call.value(0)
    sizes = list(value.array.shape) if isinstance(value, Known) else list(_peek(call).shape)
    rank = len(sizes)
    start, end = call.integer("start", 0), call.integer("end", rank)
    start, end = (min(max(item + rank if item < 0 else item, 0), rank) for item in (start, end))
    return known(sizes[start:end])


@operator("Size")
def size_of(call: Call) -> Known:
    """Return the number of elements."""
    value = call.value(0)
    return known(value.array.size if isinstance(value, Known) else math.prod(_peek(call).shape))


def _peek(call: Call) -> Tensor:
    """Return an input of which only the shape matters, without making the traced graph depend on a constant."""
    value = call.value(0)
    return value.tensor if isinstance(value, Constant) else call.tensor(0)


# ---- the same elements in another shape ----


def _known_identity(call: Call) -> Known | None:
    return call.known(0)


@operator("Identity", known=_known_identity)
def identity(call: Call) -> Value:
    """Return the input."""
    value = call.value(0)
    return call.tensor(0) if isinstance(value, Constant) else value


@operator("Dropout")
def dropout(call: Call) -> Value | tuple[Value, Value]:
    """Return the input, as dropout does outside training."""
    if call.has(2) and bool(call.number(2)) and call.number(1, 0.5) != 0:
        raise call.unsupported("Dropout in training mode", "training_mode=false, as exported by model.eval()")
    x = call.tensor(0)
    return (x, torch.ones_like(x, dtype=torch.bool)) if call.wants(1) else x


def _known_reshape(call: Call) -> Known | None:
    source, sizes = call.known(0), call.numbers(1)
    if source is None or not all(isinstance(size, int) for size in sizes):
        return None
    shape = [source.array.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return Known(source.array.reshape(shape), source.dtype)


@operator("Reshape", known=_known_reshape)
def reshape(call: Call) -> Tensor:
    """Reshape; 0 keeps a size unless allowzero is set, and one -1 is inferred."""
    x, sizes = call.tensor(0), call.numbers(1)
    if not call.integer("allowzero", 0):
        sizes = [_kept(x, axis) if isinstance(size, int) and size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


def _kept(x: Tensor, axis: int) -> Any:
    if axis >= x.dim():
        raise MalformedError(f"it keeps axis {axis} of an input with {x.dim()} axes")
    return x.shape[axis]


@operator("Flatten")
def flatten(call: Call) -> Tensor:
    """Make a matrix: the axes before `axis`, and those from it on."""
    x, axis = call.tensor(0), call.integer("axis", 1)
    if not -x.dim() <= axis <= x.dim():
        raise MalformedError(f"axis {axis} is outside a tensor with {x.dim()} axes")
    axis = axis + x.dim() if axis < 0 else axis
    if axis == 1 and x.dim() >= 2:
        return torch.flatten(x, 1)
    return x.reshape([math.prod(x.shape[:axis]), math.prod(x.shape[axis:])])


def _known_squeeze(call: Call) -> Known | None:
    source, axes = call.known(0), call.axes(1)
    if source is None:
        return None
    return Known(np.squeeze(source.array, None if axes is None else tuple(axes)), source.dtype)


@operator("Squeeze", known=_known_squeeze)
def squeeze(call: Call) -> Tensor:
    """Drop axes of size 1."""
    x, axes = call.tensor(0), call.axes(1)
    if axes is None:
        axes = [axis for axis, size in enumerate(x.shape) if isinstance(size, int) and size == 1]
    for axis in sorted((axis_in(axis, x.dim()) for axis in axes), reverse=True):
        if isinstance(x.shape[axis], int) and x.shape[axis] != 1:
            raise MalformedError(f"axis {axis} has {x.shape[axis]} elements, not 1")
        x = x.squeeze(axis)
    return x


def _known_unsqueeze(call: Call) -> Known | None:
    source, axes = call.known(0), call.axes(1)
    return None if source is None or axes is None else Known(np.expand_dims(source.array, tuple(axes)), source.dtype)


@operator("Unsqueeze", known=_known_unsqueeze)
def unsqueeze(call: Call) -> Tensor:
    """Insert axes of size 1; they count in the result."""
    x, axes = call.tensor(0), call.axes(1)
    if axes is None:
        raise MalformedError("its axes are missing")
    rank = x.dim() + len(axes)
    for axis in sorted(axis_in(axis, rank) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _known_transpose(call: Call) -> Known | None:
    source = call.known(0)
    return None if source is None else Known(np.transpose(source.array, call.integers("perm")), source.dtype)


@operator("Transpose", known=_known_transpose)
def transpose(call: Call) -> Tensor:
    """Permute the axes; two that swap are a transpose."""
    x = call.tensor(0)
    order = call.integers("perm") or list(reversed(range(x.dim())))
    if sorted(order) != list(range(x.dim())):
        raise MalformedError(f"attribute 'perm' is {order} for {x.dim()} axes")
    moved = [axis for axis in range(x.dim()) if order[axis] != axis]
    return x.transpose(*moved) if len(moved) == 2 else x.permute(order)


# ---- several, parts, copies ----


def _known_concat(call: Call) -> Known | None:
    sources = [call.known(index) for index in range(len(call.values))]
    found = [source for source in sources if source is not None]
    if len(found) != len(sources):
        return None
    return Known(np.concatenate([source.array for source in found], call.integer("axis", 0)), found[0].dtype)


@operator("Concat", known=_known_concat)
def concat(call: Call) -> Tensor:
    """Join along an axis."""
    return torch.cat(call.tensors(), call.integer("axis", 0))


@operator("Split")
def split(call: Call) -> tuple[Tensor, ...]:
    """Cut along an axis: into given sizes, or into equal parts of which the last may be smaller."""
    x = call.tensor(0)
    axis = axis_in(call.integer("axis", 0), x.dim())
    sizes = [int(item) for item in call.numbers(1)] if call.has(1) else call.integers("split")
    if sizes:
        return torch.split(x, sizes, axis)
    count = call.integer("num_outputs", call.output_count)
    if not 1 <= count <= max(call.output_count, 1):
        raise MalformedError(f"it makes {count} parts and has {call.output_count} outputs")
    size = (x.shape[axis] + count - 1) // count
    sizes = [size] * (count - 1) + [x.shape[axis] - size * (count - 1)]
    return torch.split(x, sizes, axis)


def _known_expand(call: Call) -> Known | None:
    source, sizes = call.known(0), call.numbers(1)
    if source is None or len(sizes) > 1 or not all(isinstance(size, int) and size <= 64 for size in sizes):
        return None
    shape = np.broadcast_shapes(source.array.shape, tuple(sizes))
    return Known(np.broadcast_to(source.array, shape).copy(), source.dtype)


@operator("Expand", known=_known_expand)
def expand(call: Call) -> Tensor:
    """Broadcast to a shape; 1 there keeps the input's size."""
    number, sizes = call.known(0), call.numbers(1)
    if number is not None and number.array.size == 1 and number.array.ndim <= len(sizes):
        return torch.full(_sizes(sizes), number.items()[0], dtype=number.dtype)
    x = call.tensor(0)
    rank = max(x.dim(), len(sizes))
    wanted = [1] * (rank - len(sizes)) + sizes
    have = [1] * (rank - x.dim()) + list(x.shape)
    shape = [want if isinstance(size, int) and size == 1 else size for want, size in zip(wanted, have, strict=True)]
    for want, size in zip(wanted, have, strict=True):
        if isinstance(want, int) and isinstance(size, int) and 1 not in (want, size) and want != size:
            raise MalformedError(f"shape {have} does not broadcast to {wanted}")
    return x.expand(shape)


@operator("Tile")
def tile(call: Call) -> Tensor:
    """Repeat along each axis."""
    x, counts = call.tensor(0), call.numbers(1)
    if len(counts) != x.dim():
        raise MalformedError(f"it has {len(counts)} repeats for {x.dim()} axes")
    return x.repeat(counts)


@operator("Trilu")
def triangle(call: Call) -> Tensor:
    """Keep the upper or the lower triangle."""
    x, diagonal = call.tensor(0), int(call.number(1, 0))
    return torch.triu(x, diagonal) if call.integer("upper", 1) else torch.tril(x, diagonal)


@operator("ReverseSequence")
def reverse_sequence(call: Call) -> Tensor:
    """Reverse the first elements of each sequence of a batch."""
    x, lengths = call.tensor(0), call.tensor(1)
    time, batch = call.integer("time_axis", 0), call.integer("batch_axis", 1)
    steps = torch.arange(x.shape[time]).unsqueeze(1)
    index = torch.where(steps < lengths, lengths - 1 - steps, steps)
    index = index if time < batch else index.t()
    shape = [1] * x.dim()
    shape[time], shape[batch] = x.shape[time], x.shape[batch]
    return torch.gather(x, time, index.reshape(shape).expand(x.shape))


@operator("DepthToSpace")
def depth_to_space(call: Call) -> Tensor:
    """Move blocks of channels into the plane; CRD is torch's order."""
    x, block = call.tensor(0), call.integer("blocksize", 1)
    if call.text("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    batch, channels, height, width = x.shape
    y = x.reshape(batch, block, block, channels // block**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return y.reshape(batch, channels // block**2, height * block, width * block)


@operator("SpaceToDepth")
def space_to_depth(call: Call) -> Tensor:
    """Move blocks of the plane into channels."""
    x, block = call.tensor(0), call.integer("blocksize", 1)
    if call.text("mode", "DCR") == "CRD":
        return F.pixel_unshuffle(x, block)
    batch, channels, height, width = x.shape
    y = x.reshape(batch, channels, height // block, block, width // block, block).permute(0, 3, 5, 1, 2, 4)
    return y.reshape(batch, channels * block**2, height // block, width // block)
