"""Tensors made of nothing: filled, counted, diagonal. Most are constants before a backend sees them; the rest are one kernel."""

from __future__ import annotations

from typing import Any

from dsopt.backends.tir.program import Buffer
from dsopt.backends.tir.registry import Context, lowering
from dsopt.backends.tir.tvm_adapter import constant, tirx


def _fill(context: Context, value: float) -> Buffer:
    result = context.result()
    with context.kernel() as k:
        y = k.write("y", result, (result.elements,))
        with k.grid(i=result.elements) as (i,):
            k.store(y, constant(value, context.dtype), i)
    return result


@lowering("aten.full.default", "aten.full_like.default", "aten.fill.Scalar")
def _full(context: Context, _like: Any, value: float, *options: Any) -> Buffer:
    return _fill(context, value)


@lowering("aten.new_full.default")
def _new_full(context: Context, _like: Buffer, shape: list[int], value: float, *options: Any) -> Buffer:
    return _fill(context, value)


@lowering("aten.scalar_tensor.default")
def _scalar(context: Context, value: float, *options: Any) -> Buffer:
    return _fill(context, value)


@lowering("aten.zeros.default", "aten.zeros_like.default", "aten.new_zeros.default", "aten.empty.memory_format",
          "aten.empty_like.default", "aten.new_empty.default")  # fmt: skip
def _zeros(context: Context, *options: Any) -> Buffer:
    return _fill(context, 0)


@lowering("aten.ones.default", "aten.ones_like.default", "aten.new_ones.default")
def _ones(context: Context, *options: Any) -> Buffer:
    return _fill(context, 1)


def _count(context: Context, start: float, step: float) -> Buffer:
    result = context.result()
    with context.kernel() as k:
        y = k.write("y", result, (result.elements,))
        with k.grid(i=result.elements) as (i,):
            place = tirx.Cast(context.dtype, i)
            k.store(y, constant(start, context.dtype) + place * constant(step, context.dtype), i)
    return result


@lowering("aten.arange.default")
def _arange(context: Context, end: float, *options: Any) -> Buffer:
    return _count(context, 0, 1)


@lowering("aten.arange.start")
def _arange_start(context: Context, start: float, end: float, *options: Any) -> Buffer:
    return _count(context, start, 1)


@lowering("aten.arange.start_step")
def _arange_step(context: Context, start: float, end: float, step: float, *options: Any) -> Buffer:
    return _count(context, start, step)


@lowering("aten.linspace.default")
def _linspace(context: Context, start: float, end: float, steps: int, *options: Any) -> Buffer:
    return _count(context, start, (end - start) / max(steps - 1, 1))


@lowering("aten.eye.default", "aten.eye.m")
def _eye(context: Context, *options: Any) -> Buffer:
    result = context.result()
    with context.kernel() as k:
        y = k.write("y", result)
        with k.grid(r=result.shape[0], c=result.shape[1]) as (r, c):
            k.store(y, tirx.Cast(context.dtype, r == c), r, c)
    return result
