"""Writing elements by position into a copy."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dsopt.frontend.onnx_reader.call import Call, axis_in, to_type
from dsopt.frontend.onnx_reader.ops.indexing import non_negative
from dsopt.frontend.onnx_reader.problems import MalformedError
from dsopt.frontend.onnx_reader.registry import operator

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _reduction(call: Call) -> str:
    name = call.text("reduction", "none")
    if name != "none" and name not in _REDUCTIONS:
        raise MalformedError(f"attribute 'reduction' is {name!r}")
    return name


@operator("Scatter", "ScatterElements")
def scatter_elements(call: Call) -> Tensor:
    """Write one element for each index along an axis, or add, multiply, compare it there."""
    x, updates, reduction = call.tensor(0), call.tensor(2), _reduction(call)
    axis = axis_in(call.integer("axis", 0), x.dim())
    index = non_negative(call, 1, x.shape[axis])
    if reduction == "none":
        return torch.scatter(x, axis, index, updates)
    return torch.scatter_reduce(x, axis, index, updates, _REDUCTIONS[reduction])


@operator("ScatterND")
def scatter_nd(call: Call) -> Tensor:
    """Write slices by tuples of indices, or add, multiply, compare them there."""
    x, indices, updates, reduction = (
        call.tensor(0),
        to_type(call.tensor(1), torch.int64),
        call.tensor(2),
        _reduction(call),
    )
    depth = indices.shape[-1]
    if not 1 <= depth <= x.dim():
        raise MalformedError(f"its indices have {depth} numbers for {x.dim()} axes")
    places = indices.unbind(-1)
    if reduction == "none":
        return torch.index_put(x, places, updates)
    if reduction == "add":
        return torch.index_put(x, places, updates, accumulate=True)
    flat = torch.zeros_like(places[0])
    for size, place in zip(x.shape[:depth], places, strict=True):
        flat = flat * size + torch.where(place < 0, place + size, place)
    rows = x.reshape([math.prod(x.shape[:depth]), -1])
    values = updates.reshape([-1, rows.shape[1]])
    index = flat.reshape(-1, 1).expand(values.shape)
    return torch.scatter_reduce(rows, 0, index, values, _REDUCTIONS[reduction]).reshape(x.shape)


@operator("TensorScatter")
def tensor_scatter(call: Call) -> Tensor:
    """Write new entries of a cache behind those that each sequence of the batch has, on demand around its end."""
    past, update = call.tensor(0), call.tensor(1)
    axis = axis_in(call.integer("axis", -2), past.dim())
    if axis == 0:
        raise MalformedError("its axis is the batch")
    start = to_type(call.tensor(2), torch.int64) if call.has(2) else torch.zeros([past.shape[0]], dtype=torch.int64)
    places = start.unsqueeze(1) + torch.arange(update.shape[axis])
    if call.text("mode", "linear") == "circular":
        places = torch.remainder(places, past.shape[axis])
    shape = [1] * past.dim()
    shape[0], shape[axis] = update.shape[0], update.shape[axis]
    return torch.scatter(past, axis, places.reshape(shape).expand(update.shape), update)
