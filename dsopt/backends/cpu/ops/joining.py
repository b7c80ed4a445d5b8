"""Joining and cutting along an axis: cat, stack, split, slice, select."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from dsopt.backends.cpu.builder import Value
from dsopt.backends.cpu.emitter import Emitter, Extent
from dsopt.backends.cpu.registry import converter

END = 2**63 - 1
"""What torch and ONNX take for "to the end"."""


@converter("aten.cat.default", "aten.concat.default", "aten.concatenate.default")
def convert_cat(cx: Emitter, tensors: Sequence[fx.Node], dim: int = 0) -> Value:
    """Write tensors joined along an axis; torch lets empty vectors stand among them."""
    rank = len(cx.out.shape)
    kept = [each for each in tensors if not (cx.rank(each) == 1 and rank > 1 and cx.shape(each)[0] == 0)]
    return cx.concat([cx.cast(cx.value(each), cx.dtype) for each in kept], cx.axis(dim, rank))


@converter("aten.stack.default")
def convert_stack(cx: Emitter, tensors: Sequence[fx.Node], dim: int = 0) -> Value:
    """Write tensors joined along a new axis."""
    axis = cx.axis(dim, len(cx.out.shape))
    return cx.concat([cx.unsqueeze(cx.cast(cx.value(each), cx.dtype), axis) for each in tensors], axis)


@converter("aten.hstack.default")
def convert_hstack(cx: Emitter, tensors: Sequence[fx.Node]) -> Value:
    """Write tensors joined along axis 1, vectors along axis 0."""
    values = [cx.cast(cx.value(each), cx.dtype) for each in tensors]
    return cx.concat(values, min(1, len(cx.out.shape) - 1))


@converter("aten.vstack.default")
def convert_vstack(cx: Emitter, tensors: Sequence[fx.Node]) -> Value:
    """Write tensors joined along axis 0, vectors as rows."""
    values = [cx.cast(cx.value(each), cx.dtype) for each in tensors]
    rows = [cx.unsqueeze(v, 0) if cx.rank(each) == 1 else v for each, v in zip(tensors, values, strict=True)]
    return cx.concat(rows, 0)


def _cut(cx: Emitter, x: fx.Node, dim: int) -> tuple[Value, ...]:
    """Cut along an axis into the recorded pieces."""
    axis, value = cx.axis(dim, cx.rank(x)), cx.value(x)
    pieces = list(cx.out)
    sizes = [piece.shape[axis] for piece in pieces]
    if len(pieces) == 1:
        return (value,)
    if all(isinstance(size, int) for size in sizes):
        return cx.ops("Split", value, cx.vector(sizes), dtypes=[None] * len(sizes), axis=axis)
    results: list[Value] = []
    start: Extent = 0
    for number, size in enumerate(sizes):
        last = number == len(sizes) - 1
        end: Extent = END if last else _sum(cx, start, cx.symbolic(size))
        results.append(cx.slice(value, axis, start, end))
        start = end
    return tuple(results)


def _sum(cx: Emitter, a: Extent, b: Extent) -> Extent:
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    return cx.op("Add", cx.sizes([a]), cx.sizes([b]))


@converter("aten.split.Tensor", "aten.split_with_sizes.default", "aten.split.sizes", "aten.chunk.default",
           "aten.tensor_split.sections", "aten.tensor_split.indices", "aten.split_with_sizes_copy.default",
           "aten.unsafe_split.Tensor", "aten.unsafe_chunk.default")  # fmt: skip
def convert_split(cx: Emitter, x: fx.Node, sizes: Any, dim: int = 0) -> tuple[Value, ...]:
    """Write a tensor cut along an axis."""
    return _cut(cx, x, dim)


@converter("aten.unbind.int", "aten.unbind_copy.int")
def convert_unbind(cx: Emitter, x: fx.Node, dim: int = 0) -> tuple[Value | None, ...]:
    """Write the slices along an axis, without it."""
    axis, value = cx.axis(dim, cx.rank(x)), cx.value(x)
    return tuple(
        cx.op("Gather", value, cx.constant(number, torch.int64), axis=axis) if cx.used(number) else None
        for number in range(len(cx.out))
    )


@converter("aten.slice.Tensor", "aten.slice_copy.Tensor")
def convert_slice(cx: Emitter, x: fx.Node, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Value:
    """Write start, start + step, ... before end."""
    first, last = bound(cx, start, 0), bound(cx, end, END)
    if step == 1 and _is_all(cx, x, cx.axis(dim, cx.rank(x)), first, last):
        return cx.value(x)
    return cx.slice(cx.value(x), cx.axis(dim, cx.rank(x)), first, last, step)


def bound(cx: Emitter, given: Any, default: int) -> Extent:
    """Return a start or an end; None is the default."""
    return default if given is None else cx.size(given)


def _is_all(cx: Emitter, x: fx.Node, axis: int, first: Extent, last: Extent) -> bool:
    size = cx.shape(x)[axis]
    return first == 0 and isinstance(last, int) and (last == END or (isinstance(size, int) and last >= size))


@converter("aten.narrow.default")
def convert_narrow(cx: Emitter, x: fx.Node, dim: int, start: Any, length: Any) -> Value:
    """Write `length` elements from start on."""
    axis = cx.axis(dim, cx.rank(x))
    first, count = cx.size(start), cx.size(length)
    if isinstance(first, int) and first < 0:
        first = _sum(cx, cx.extent(x, axis), first)
    return cx.slice(cx.value(x), axis, first, _sum(cx, first, count))


@converter("aten.select.int", "aten.select_copy.int")
def convert_select(cx: Emitter, x: fx.Node, dim: int, index: Any) -> Value:
    """Write one slice along an axis, without it."""
    axis, place = cx.axis(dim, cx.rank(x)), cx.size(index)
    number = cx.constant(place, torch.int64) if isinstance(place, int) else cx.op("Reshape", place, cx.vector([]))
    return cx.op("Gather", cx.value(x), number, axis=axis)


@converter("aten.select_scatter.default")
def convert_select_scatter(cx: Emitter, x: fx.Node, src: fx.Node, dim: int, index: Any) -> Value:
    """Write x with one slice along an axis replaced."""
    axis = cx.axis(dim, cx.rank(x))
    size, place = cx.extent(x, axis), cx.size(index)
    if isinstance(place, int) and place < 0:
        place = _sum(cx, size, place)
    return _replaced(cx, x, cx.unsqueeze(cx.cast(cx.value(src), cx.dtype), axis), axis, place, _sum(cx, place, 1))


@converter("aten.slice_scatter.default")
def convert_slice_scatter(
    cx: Emitter, x: fx.Node, src: fx.Node, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Value:
    """Write x with start, start + step, ... before end replaced along an axis."""
    axis = cx.axis(dim, cx.rank(x))
    first, last = bound(cx, start, 0), bound(cx, end, END)
    value = cx.cast(cx.value(src), cx.dtype)
    if step == 1:
        size = cx.extent(x, axis)
        if isinstance(first, int) and first < 0:
            first = max(0, size + first) if isinstance(size, int) else _sum(cx, size, first)
        stop = _sum(cx, first, cx.extent(src, axis))
        return (
            value
            if first == 0 and isinstance(last, int) and last == END
            else _replaced(cx, x, value, axis, first, stop)
        )
    size = cx.fixed(cx.shape(x)[axis], "the size along which a stepped slice is written")
    places = torch.arange(size)[slice(cx.fixed(first, "its start"), cx.fixed(last, "its end"), step)]
    index = cx.op(
        "Expand", cx.constant(places.reshape(-1, *(1,) * (cx.rank(x) - axis - 1)), torch.int64), cx.shape_of(src)
    )
    return cx.op("ScatterElements", cx.value(x), index, value, axis=axis)


def _replaced(cx: Emitter, x: fx.Node, value: Value, axis: int, start: Extent, end: Extent) -> Value:
    """Join what lies before start, the new values, and what lies from end on."""
    size = cx.shape(x)[axis]
    parts = [cx.slice(cx.value(x), axis, 0, start), value, cx.slice(cx.value(x), axis, end, END)]
    kept = parts[1 if start == 0 else 0 : 2 if isinstance(end, int) and isinstance(size, int) and end >= size else 3]
    return cx.concat(kept, axis)
