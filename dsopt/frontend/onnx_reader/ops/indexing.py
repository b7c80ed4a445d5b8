"""Taking elements by position."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dsopt.frontend.onnx_reader.call import Call, axis_in, to_type
from dsopt.frontend.onnx_reader.problems import MalformedError
from dsopt.frontend.onnx_reader.registry import operator
from dsopt.frontend.onnx_reader.values import Known, Value

_LAST = 2**31 - 1


def _known_gather(call: Call) -> Known | None:
    source, index = call.known(0), call.known(1)
    if source is None or index is None or not index.is_concrete:
        return None
    taken = np.take(source.array, index.array.astype(np.int64), axis=call.integer("axis", 0))
    array = np.empty(np.shape(taken), dtype=object)
    array[...] = taken
    return Known(array, source.dtype)


@operator("Gather", known=_known_gather)
def gather(call: Call) -> Tensor:
    """Take slices along an axis: one, several, or rows of a table, which is an embedding."""
    x = call.tensor(0)
    axis = axis_in(call.integer("axis", 0), x.dim())
    index = call.known(1)
    if index is not None and index.array.ndim == 0:
        return x.select(axis, index.items()[0])
    if index is not None and index.is_concrete and index.array.ndim == 1 and isinstance(x.shape[axis], int):
        places = _in_range([int(item) for item in index.items()], x.shape[axis])
        first = places[0] if places else 0
        if places and places == list(range(first, first + len(places))):
            return x.narrow(axis, first, len(places))
        return x.index_select(axis, torch.tensor(places, dtype=torch.int64))
    indices = call.tensor(1)
    if indices.dtype not in (torch.int64, torch.int32):
        raise MalformedError(f"its indices are {indices.dtype}")
    if axis == 0 and x.dim() == 2 and x.is_floating_point() and call.is_stored(0):
        return F.embedding(indices, x)
    return x[_at(axis, indices)]


def _at(axis: int, item: Any) -> Any:
    """Return an index that applies `item` to one axis."""
    return (*(slice(None),) * axis, item)


def _in_range(places: list[int], size: int) -> list[int]:
    if any(not -size <= place < size for place in places):
        raise MalformedError(f"an index of {places[:8]} is outside an axis with {size} elements")
    return [place % size for place in places]


def non_negative(call: Call, position: int, size: Any) -> Tensor:
    """Return the indices of input `position` with those below zero counted from the end of an axis of `size`."""
    index = to_type(call.tensor(position), torch.int64)
    stored = call.known(position)
    if stored is not None and stored.is_concrete and all(item >= 0 for item in stored.items()):
        return index
    return torch.where(index < 0, index + size, index)


@operator("GatherElements")
def gather_elements(call: Call) -> Tensor:
    """Take one element for each index along an axis."""
    x = call.tensor(0)
    axis = axis_in(call.integer("axis", 0), x.dim())
    return torch.gather(x, axis, non_negative(call, 1, x.shape[axis]))


@operator("GatherND")
def gather_nd(call: Call) -> Tensor:
    """Take slices by tuples of indices, in each of the leading `batch_dims` axes apart."""
    x, indices, batch = call.tensor(0), to_type(call.tensor(1), torch.int64), call.integer("batch_dims", 0)
    if not indices.dim() or not 0 <= batch < min(indices.dim(), x.dim() + 1):
        raise MalformedError(f"attribute 'batch_dims' is {batch}")
    places: list[Tensor] = []
    for axis in range(batch):
        shape = [1] * (indices.dim() - 1)
        shape[axis] = x.shape[axis]
        places.append(torch.arange(x.shape[axis]).reshape(shape))
    places += indices.unbind(-1)
    return x[tuple(places)] if places else x


# ---- slices ----


def _slice_parts(call: Call) -> tuple[list[Any], list[Any], list[int] | None, list[int]]:
    """Return starts, ends, axes and steps, which are attributes before opset 10."""
    if call.version < 10:
        starts, ends = call.integers("starts"), call.integers("ends")
        if starts is None or ends is None or len(starts) != len(ends):
            raise MalformedError("its starts and ends do not match")
        return starts, ends, call.integers("axes"), [1] * len(starts)
    starts, ends = call.numbers(1), call.numbers(2)
    axes = [int(item) for item in call.numbers(3)] if call.has(3) else None
    steps = [int(item) for item in call.numbers(4)] if call.has(4) else [1] * len(starts)
    if len(starts) != len(ends) or len(steps) != len(starts) or 0 in steps:
        raise MalformedError(f"its starts {starts}, ends {ends} and steps {steps} do not match")
    return starts, ends, axes, steps


def _known_slice(call: Call) -> Known | None:
    source = call.known(0)
    starts, ends, axes, steps = _slice_parts(call)
    if source is None or not all(isinstance(item, int) for item in (*starts, *ends)):
        return None
    array = source.array
    for position, (start, end, step) in enumerate(zip(starts, ends, steps, strict=True)):
        axis = axis_in(axes[position] if axes is not None else position, array.ndim)
        first, stop = _bounds(start, end, step, array.shape[axis])
        last = None if stop < 0 else stop
        array = array[_at(axis, slice(first, last, step))]
    return Known(array, source.dtype)


def _bounds(start: int, end: int, step: int, size: int) -> tuple[int, int]:
    """Return where a slice of a fixed size starts and stops; a stop of -1 is before the first element."""
    start, end = (item + size if item < 0 else item for item in (start, end))
    if step > 0:
        return min(max(start, 0), size), min(max(end, 0), size)
    return min(max(start, 0), size - 1), min(max(end, -1), size - 1)


@operator("Slice", known=_known_slice)
def slice_(call: Call) -> Tensor:
    """Cut out a range of each axis, backwards for a negative step."""
    x = call.tensor(0)
    starts, ends, axes, steps = _slice_parts(call)
    for position, (start, end, step) in enumerate(zip(starts, ends, steps, strict=True)):
        axis = axis_in(axes[position] if axes is not None else position, x.dim())
        x = _forward(x, axis, start, end, step) if step > 0 else _backward(call, x, axis, start, end, step)
    return x


def _forward(x: Tensor, axis: int, start: Any, end: Any, step: int) -> Tensor:
    if isinstance(end, int) and end >= _LAST:
        end = None
    if isinstance(start, int) and start == 0 and end is None and step == 1:
        return x
    return x[_at(axis, slice(start, end, step))]


def _backward(call: Call, x: Tensor, axis: int, start: Any, end: Any, step: int) -> Tensor:
    """Slice with a negative step: turn the axis around, and count from its other end."""
    size = x.shape[axis]
    turned = torch.flip(x, [axis])
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
        first, stop = _bounds(start, end, step, size)
        return turned[_at(axis, slice(size - 1 - first, max(size - 1 - stop, 0), -step))]
    if not isinstance(start, int) or not isinstance(end, int):
        raise call.unsupported("Slice backwards between computed bounds", "fixed starts and ends")
    lower: Any = -1 - start if start < 0 else None if start >= _LAST else size - 1 - start
    upper: Any = None if end <= -_LAST else -1 - end if end < 0 else size - 1 - end
    return turned[_at(axis, slice(lower, upper, -step))]


# ---- by value ----


@operator("TopK")
def top_k(call: Call) -> tuple[Tensor, Tensor]:
    """Return the k largest or smallest along an axis and where they are."""
    x = call.tensor(0)
    count = call.number(1) if call.version >= 10 else call.integer("k", 1)
    axis = axis_in(call.integer("axis", -1), x.dim())
    largest, ordered = bool(call.integer("largest", 1)), bool(call.integer("sorted", 1))
    if x.is_floating_point():
        values, indices = torch.topk(x, count, axis, largest, ordered)
        return values, indices
    # Of equal integers the first comes first, which torch's topk does not promise.
    values, indices = torch.sort(x, stable=True, dim=axis, descending=largest)
    return values.narrow(axis, 0, count), indices.narrow(axis, 0, count)


@operator("NonZero", needs_numbers=True)
def non_zero(call: Call) -> Tensor:
    """Return where elements are not zero, one row for each axis."""
    return torch.nonzero(call.tensor(0)).t()


@operator("Compress", needs_numbers=True)
def compress(call: Call) -> Tensor:
    """Keep the slices where a condition holds."""
    x, condition = call.tensor(0), call.tensor(1)
    if "axis" not in call.node.attributes:
        x = x.flatten()
    axis = axis_in(call.integer("axis", 0), x.dim())
    return x.index_select(axis, torch.nonzero(condition).squeeze(1))


@operator("OneHot")
def one_hot(call: Call) -> Tensor:
    """Put one value where an index says, another elsewhere, along a new axis."""
    indices, depth, values = call.tensor(0), call.number(1), call.tensor(2)
    depth = int(depth) if isinstance(depth, (int, float)) else depth
    axis = axis_in(call.integer("axis", -1), indices.dim() + 1)
    index = torch.remainder(to_type(indices, torch.int64), depth)
    shape = [1] * (indices.dim() + 1)
    shape[axis] = depth
    in_range = (indices >= -depth) & (indices < depth)
    hot = (index.unsqueeze(axis) == torch.arange(depth).reshape(shape)) & in_range.unsqueeze(axis)
    return torch.where(hot, values[1], values[0])


@operator("Unique", needs_numbers=True)
def unique(call: Call) -> tuple[Value, ...]:
    """Return what differs along an axis, where it first is, where each element went, and how often it is there."""
    x = call.tensor(0)
    axis = axis_in(call.integer("axis", 0), x.dim()) if "axis" in call.node.attributes else None
    if axis is None:
        x, axis = x.flatten(), 0
    values, inverse, counts = torch.unique(x, sorted=True, return_inverse=True, return_counts=True, dim=axis)
    places = torch.arange(inverse.shape[0])
    first = torch.full([counts.shape[0]], inverse.shape[0]).scatter_reduce(0, inverse, places, "amin")
    if call.integer("sorted", 1):
        return values, first, inverse, counts
    order = torch.argsort(first)
    return values.index_select(axis, order), first[order], torch.argsort(order)[inverse], counts[order]
