"""Writing by index: scatter, index_put, index_copy and their kind, each giving a new tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from dsopt.backends.cpu.builder import Value
from dsopt.backends.cpu.emitter import Emitter
from dsopt.backends.cpu.ops.indexing import IndexPlan, as_index, vector_of
from dsopt.backends.cpu.registry import RefusalError, converter
from dsopt.ir.torch_private import same_size

_REDUCTIONS = {"add": "add", "sum": "add", "multiply": "mul", "prod": "mul", "amax": "max", "amin": "min"}


@converter("aten.index_put.default", "aten._unsafe_index_put.default")
def convert_index_put(
    cx: Emitter, x: fx.Node, indices: Sequence[fx.Node | None], values: fx.Node, accumulate: bool = False
) -> Value:
    """Write x with x[indices] replaced by values, or added to."""
    mask = indices[0]
    if len(indices) == 1 and mask is not None and mask.meta["val"].dtype == torch.bool and cx.rank(values) == 0:
        return _masked(cx, x, mask, values, accumulate)
    plan = IndexPlan(cx, x, indices)
    base, places = cx.transpose(cx.value(x), plan.order), plan.places()
    new = _spread_values(cx, x, values, plan, places)
    reduction = "add" if accumulate else None
    written = cx.op("ScatterND", base, places, new, reduction=reduction)
    return cx.transpose(written, [plan.order.index(axis) for axis in range(cx.rank(x))])


def _masked(cx: Emitter, x: fx.Node, mask: fx.Node, value: fx.Node, accumulate: bool) -> Value:
    wide = cx.unsqueeze(cx.value(mask), *range(cx.rank(mask), cx.rank(x)))
    new = cx.operand(value, cx.dtype)
    if accumulate:
        new = cx.op("Add", cx.value(x), new)
    return cx.op("Where", wide, new, cx.value(x), dtype=cx.dtype)


def _spread_values(cx: Emitter, x: fx.Node, values: fx.Node, plan: IndexPlan, places: Value) -> Value:
    """Return the values in the shape (*index shape, *rest) that ScatterND takes."""
    rank = plan.index_rank + len(plan.rest)
    new = cx.unsqueeze(cx.value(values), *range(rank - cx.rank(values)))
    new = cx.op("Expand", new, _picked_shape(cx, x, plan, places))
    return cx.transpose(new, [plan.back().index(axis) for axis in range(rank)])


def _picked_shape(cx: Emitter, x: fx.Node, plan: IndexPlan, places: Value) -> Value:
    """Return the shape of x[indices] as torch has it: the index shape stands at `plan.place`."""
    if plan.mask is None and len(plan.tensors) == 1:
        index = [cx.extent(plan.tensors[0], axis) for axis in range(plan.index_rank)]
    else:
        index = [cx.measured(places, axis) for axis in range(plan.index_rank)]
    rest = [cx.extent(x, axis) for axis in plan.rest]
    return cx.sizes([*rest[: plan.place], *index, *rest[plan.place :]])


@converter("aten.index_copy.default")
def convert_index_copy(cx: Emitter, x: fx.Node, dim: int, index: fx.Node, source: fx.Node) -> Value:
    """Write x with slices along an axis replaced: how a cache takes in its new entries."""
    return _along(cx, x, dim, index, cx.value(source), None)


@converter("aten.index_add.default")
def convert_index_add(cx: Emitter, x: fx.Node, dim: int, index: fx.Node, source: fx.Node, *, alpha: float = 1) -> Value:
    """Write x with slices along an axis added to."""
    value = cx.value(source)
    value = value if alpha == 1 else cx.op("Mul", value, cx.constant(alpha, value.dtype))
    return _along(cx, x, dim, index, value, "add")


@converter("aten.index_fill.int_Scalar", "aten.index_fill.int_Tensor")
def convert_index_fill(cx: Emitter, x: fx.Node, dim: int, index: fx.Node, value: Any) -> Value:
    """Write x with slices along an axis set to one number."""
    axis = cx.axis(dim, cx.rank(x))
    extents = [cx.extent(index, 0) if each == axis else cx.extent(x, each) for each in range(cx.rank(x))]
    return _along(cx, x, dim, index, cx.op("Expand", cx.operand(value, cx.dtype), cx.sizes(extents)), None)


def _along(cx: Emitter, x: fx.Node, dim: int, index: fx.Node, source: Value, reduction: str | None) -> Value:
    """Scatter slices: by rows where the axis is the first, else element by element, which copies no axis around."""
    axis, places = cx.axis(dim, cx.rank(x)), vector_of(cx, index)
    places = cx.cast(places, torch.int64)
    if axis == 0:
        return cx.op("ScatterND", cx.value(x), cx.unsqueeze(places, 1), source, reduction=reduction)
    column = cx.unsqueeze(places, *range(1, cx.rank(x) - axis))
    spread = cx.op("Expand", column, cx.op("Shape", source, dtype=torch.int64))
    return cx.op("ScatterElements", cx.value(x), spread, source, axis=axis, reduction=reduction)


@converter("aten.scatter.src", "aten.scatter.value", "aten.scatter.reduce", "aten.scatter.value_reduce")
def convert_scatter(cx: Emitter, x: fx.Node, dim: int, index: fx.Node, src: Any, *, reduce: str | None = None) -> Value:
    """Write x with elements along an axis replaced, each place with an index of its own."""
    return _elements(cx, x, dim, index, src, None if reduce is None else _REDUCTIONS[reduce])


@converter("aten.scatter_add.default")
def convert_scatter_add(cx: Emitter, x: fx.Node, dim: int, index: fx.Node, src: fx.Node) -> Value:
    """Write x with elements along an axis added to."""
    return _elements(cx, x, dim, index, src, "add")


@converter("aten.scatter_reduce.two")
def convert_scatter_reduce(
    cx: Emitter, x: fx.Node, dim: int, index: fx.Node, src: fx.Node, reduce: str, *, include_self: bool = True
) -> Value:
    """Write x with elements along an axis combined with others."""
    if not include_self or reduce not in _REDUCTIONS:
        raise RefusalError(
            f"scatter_reduce with reduce={reduce!r}, include_self={include_self}",
            "use sum, prod, amax or amin with include_self=True",
        )
    return _elements(cx, x, dim, index, src, _REDUCTIONS[reduce])


def _elements(cx: Emitter, x: fx.Node, dim: int, index: fx.Node, src: Any, reduction: str | None) -> Value:
    places = as_index(cx, index)
    if isinstance(src, fx.Node) and src.meta["val"].dim() == cx.rank(index) > 0:
        new = cx.cast(cx.value(src), cx.dtype)
        for axis in range(cx.rank(index)):  # torch reads as much of src as the index has
            if not same_size(cx.shape(src)[axis], cx.shape(index)[axis]):
                new = cx.slice(new, axis, 0, cx.extent(index, axis))
    else:
        new = cx.op("Expand", cx.operand(src, cx.dtype), cx.shape_of(index))
    if cx.rank(x) == 0:
        value, places, new = (cx.unsqueeze(each, 0) for each in (cx.value(x), places, new))
        return cx.squeeze(cx.op("ScatterElements", value, places, new, axis=0, reduction=reduction), 0)
    return cx.op("ScatterElements", cx.value(x), places, new, axis=cx.axis(dim, cx.rank(x)), reduction=reduction)


@converter("aten.masked_scatter.default")
def convert_masked_scatter(cx: Emitter, x: fx.Node, mask: fx.Node, source: fx.Node) -> Value:
    """Write x with the elements of a mask replaced by those of source, in order."""
    wide = cx.op("Expand", cx.value(mask), cx.shape_of(x))
    flat = cx.op("Reshape", cx.cast(wide, torch.int64), cx.vector([-1]))
    order = cx.op("Sub", cx.op("CumSum", flat, cx.constant(0, torch.int64)), cx.constant(1, torch.int64))
    order = cx.op("Max", order, cx.constant(0, torch.int64))
    picked = cx.op("Gather", cx.op("Reshape", cx.value(source), cx.vector([-1])), order, axis=0)
    return cx.op("Where", wide, cx.op("Reshape", picked, cx.shape_of(x)), cx.value(x), dtype=cx.dtype)
