"""Tensors made from numbers and sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from dsopt.backends.cpu.builder import Value
from dsopt.backends.cpu.emitter import Emitter
from dsopt.backends.cpu.registry import RefusalError, converter

_CONSTANT_LIMIT = 64  # elements; larger ones are made at run time by ConstantOfShape


def filled(cx: Emitter, extents: Sequence[Any], number: Any, dtype: torch.dtype) -> Value:
    """Return a tensor of one number; the sizes may vary."""
    if isinstance(number, fx.Node):
        return cx.op("Expand", cx.operand(number, dtype), cx.sizes(extents))
    count = 1
    for each in extents:
        count = count * each if isinstance(each, int) else _CONSTANT_LIMIT + 1
    if count <= _CONSTANT_LIMIT and all(isinstance(each, int) for each in extents):
        return cx.constant(torch.full(tuple(extents), number, dtype=dtype), dtype)
    value = torch.full((1,), number, dtype=dtype)
    return cx.op("ConstantOfShape", cx.sizes(extents), dtype=dtype, value=value)


def _like(cx: Emitter, x: fx.Node, number: Any) -> Value:
    return filled(cx, [cx.extent(x, axis) for axis in range(cx.rank(x))], number, cx.dtype)


@converter("aten.full.default")
def convert_full(cx: Emitter, size: Sequence[Any], fill_value: Any, **kwargs: Any) -> Value:
    """Write a tensor of one number."""
    return filled(cx, [cx.size(each) for each in size], fill_value, cx.dtype)


@converter("aten.zeros.default", "aten.empty.memory_format")
def convert_zeros(cx: Emitter, size: Sequence[Any], **kwargs: Any) -> Value:
    """Write zeros; also for a tensor whose elements are not said."""
    return filled(cx, [cx.size(each) for each in size], 0, cx.dtype)


@converter("aten.empty_permuted.default", "aten.empty_strided.default")
def convert_empty(cx: Emitter, size: Sequence[Any], strides: Sequence[Any], **kwargs: Any) -> Value:
    """Write zeros for a tensor whose elements are not said."""
    return filled(cx, [cx.size(each) for each in size], 0, cx.dtype)


@converter("aten.ones.default")
def convert_ones(cx: Emitter, size: Sequence[Any], **kwargs: Any) -> Value:
    """Write ones."""
    return filled(cx, [cx.size(each) for each in size], 1, cx.dtype)


@converter("aten.new_full.default")
def convert_new_full(cx: Emitter, x: fx.Node, size: Sequence[Any], fill_value: Any, **kwargs: Any) -> Value:
    """Write a tensor of one number."""
    return filled(cx, [cx.size(each) for each in size], fill_value, cx.dtype)


@converter("aten.new_zeros.default", "aten.new_empty.default")
def convert_new_zeros(cx: Emitter, x: fx.Node, size: Sequence[Any], **kwargs: Any) -> Value:
    """Write zeros."""
    return filled(cx, [cx.size(each) for each in size], 0, cx.dtype)


@converter("aten.new_ones.default")
def convert_new_ones(cx: Emitter, x: fx.Node, size: Sequence[Any], **kwargs: Any) -> Value:
    """Write ones."""
    return filled(cx, [cx.size(each) for each in size], 1, cx.dtype)


@converter("aten.full_like.default", "aten.fill.Scalar", "aten.fill.Tensor")
def convert_full_like(cx: Emitter, x: fx.Node, fill_value: Any, **kwargs: Any) -> Value:
    """Write one number in the shape of another tensor."""
    return _like(cx, x, fill_value)


@converter("aten.zeros_like.default", "aten.empty_like.default")
def convert_zeros_like(cx: Emitter, x: fx.Node, **kwargs: Any) -> Value:
    """Write zeros in the shape of another tensor."""
    return _like(cx, x, 0)


@converter("aten.ones_like.default")
def convert_ones_like(cx: Emitter, x: fx.Node, **kwargs: Any) -> Value:
    """Write ones in the shape of another tensor."""
    return _like(cx, x, 1)


@converter("aten.scalar_tensor.default")
def convert_scalar_tensor(cx: Emitter, number: Any, **kwargs: Any) -> Value:
    """Write a number as a tensor of rank 0."""
    return cx.operand(number, cx.dtype)


@converter("aten.arange.default")
def convert_arange(cx: Emitter, end: Any, **kwargs: Any) -> Value:
    """Write 0, 1, ... below end."""
    return _range(cx, 0, end, 1)


@converter("aten.arange.start", "aten.arange.start_step")
def convert_arange_start(cx: Emitter, start: Any, end: Any, step: Any = 1, **kwargs: Any) -> Value:
    """Write start, start + step, ... before end."""
    return _range(cx, start, end, step)


def _range(cx: Emitter, start: Any, end: Any, step: Any) -> Value:
    bounds: list[Any] = [cx.size(each) if isinstance(each, fx.Node) else each for each in (start, end, step)]
    if not any(isinstance(each, Value) for each in bounds):
        return cx.constant(torch.arange(*bounds, dtype=cx.dtype), cx.dtype)
    work = torch.int64 if not cx.dtype.is_floating_point or not any(isinstance(e, float) for e in bounds) else cx.dtype
    scalars = [
        cx.cast(cx.op("Reshape", each, cx.vector([])), work) if isinstance(each, Value) else cx.constant(each, work)
        for each in bounds
    ]
    return cx.cast(cx.op("Range", *scalars), cx.dtype)


@converter("aten.linspace.default")
def convert_linspace(cx: Emitter, start: Any, end: Any, steps: Any, **kwargs: Any) -> Value:
    """Write evenly spaced numbers."""
    count = cx.fixed(steps, "the number of steps of linspace")
    if isinstance(start, fx.Node) or isinstance(end, fx.Node):
        raise RefusalError("linspace between numbers that vary", "compute it from arange")
    return cx.constant(torch.linspace(start, end, count, dtype=cx.dtype), cx.dtype)


@converter("aten.eye.default", "aten.eye.m")
def convert_eye(cx: Emitter, n: Any, m: Any = None, **kwargs: Any) -> Value:
    """Write ones on the diagonal."""
    rows = cx.size(n)
    columns = rows if m is None else cx.size(m)
    base = filled(cx, [rows, columns], 0, torch.float32)
    if base.name in cx.initializers:
        return cx.constant(torch.eye(int(rows), int(columns)), cx.dtype)  # type: ignore[arg-type]
    return cx.cast(cx.op("EyeLike", base), cx.dtype)


@converter("aten.tril_indices.default")
def convert_tril_indices(cx: Emitter, row: int, col: int, offset: int = 0, **kwargs: Any) -> Value:
    """Write the places of a lower triangle."""
    return cx.constant(torch.tril_indices(row, col, offset), cx.dtype)


@converter("aten.triu_indices.default")
def convert_triu_indices(cx: Emitter, row: int, col: int, offset: int = 0, **kwargs: Any) -> Value:
    """Write the places of an upper triangle."""
    return cx.constant(torch.triu_indices(row, col, offset), cx.dtype)
