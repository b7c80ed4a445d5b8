"""Sums, means and extremes over axes."""

from __future__ import annotations

import functools
import math
import operator as python
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dsopt.frontend.onnx_reader.call import Call, axis_in, is_floating, to_type
from dsopt.frontend.onnx_reader.registry import operator
from dsopt.frontend.onnx_reader.sizes import larger, smaller
from dsopt.frontend.onnx_reader.values import Known, known

Reduce = Callable[[Tensor, list[int], bool], Tensor]


def _reduction(function: Reduce, empty: Callable[[Tensor], Tensor] | None = None) -> Callable[[Call], Tensor]:
    """Make an operator of a reduction. empty: what it does to each element when there is no axis to reduce."""

    def run(call: Call) -> Tensor:
        x = call.tensor(0)
        axes = call.axes(1)
        if not axes and call.integer("noop_with_empty_axes", 0):
            return empty(x) if empty is not None else x.clone()
        kept = bool(call.integer("keepdims", 1))
        if not x.dim():
            return function(x.reshape(1), [0], False)
        chosen = sorted(axis_in(axis, x.dim()) for axis in axes) if axes else list(range(x.dim()))
        result = function(x, chosen, kept)
        return to_type(result, x.dtype)

    return run


def _mean(x: Tensor, axes: list[int], kept: bool) -> Tensor:
    if is_floating(x):
        return torch.mean(x, axes, kept)
    count = math.prod(x.shape[axis] for axis in axes)
    return torch.div(torch.sum(x, axes, kept), count, rounding_mode="trunc")


def _product(x: Tensor, axes: list[int], kept: bool) -> Tensor:
    for axis in reversed(axes):
        x = torch.prod(x, axis, kept)
    return x


def _largest(x: Tensor, axes: list[int], kept: bool) -> Tensor:
    if any(isinstance(x.shape[axis], int) and not x.shape[axis] for axis in axes):
        return _of_nothing(x, axes, kept, -math.inf)
    return torch.amax(x, axes, kept)


def _smallest(x: Tensor, axes: list[int], kept: bool) -> Tensor:
    if any(isinstance(x.shape[axis], int) and not x.shape[axis] for axis in axes):
        return _of_nothing(x, axes, kept, math.inf)
    return torch.amin(x, axes, kept)


def _of_nothing(x: Tensor, axes: list[int], kept: bool, limit: float) -> Tensor:
    """Return the largest or smallest of no elements: the other end of the type."""
    if is_floating(x):
        value: Any = limit
    elif x.dtype == torch.bool:
        value = limit > 0
    else:
        value = torch.iinfo(x.dtype).max if limit > 0 else torch.iinfo(x.dtype).min
    shape = [1 if axis in axes else size for axis, size in enumerate(x.shape) if kept or axis not in axes]
    return torch.full(shape, value, dtype=x.dtype)


def _known_reduction(function: Callable[[Any, Any], Any]) -> Callable[[Call], Known | None]:
    """Reduce a vector of known numbers, such as a shape, to one."""

    def run(call: Call) -> Known | None:
        source, axes = call.known(0), call.axes(1)
        if source is None or source.array.ndim != 1 or not source.array.size or (axes and axes not in ([0], [-1])):
            return None
        if not axes and call.integer("noop_with_empty_axes", 0):
            return source
        result = functools.reduce(function, source.items())
        return known([result] if call.integer("keepdims", 1) else result, source.dtype)

    return run


def _sum(x: Tensor, axes: list[int], kept: bool) -> Tensor:
    return torch.sum(x, axes, kept)


def _log_sum(x: Tensor, axes: list[int], kept: bool) -> Tensor:
    return torch.log(torch.sum(x, axes, kept))


def _sum_square(x: Tensor, axes: list[int], kept: bool) -> Tensor:
    return torch.sum(torch.square(x), axes, kept)


def _l1(x: Tensor, axes: list[int], kept: bool) -> Tensor:
    return torch.sum(torch.abs(x), axes, kept)


def _l2(x: Tensor, axes: list[int], kept: bool) -> Tensor:
    y = x if is_floating(x) else x.to(torch.float64)
    return torch.sqrt(torch.sum(torch.square(y), axes, kept))


def _log_sum_exp(x: Tensor, axes: list[int], kept: bool) -> Tensor:
    return torch.logsumexp(x if is_floating(x) else x.to(torch.float64), axes, kept)


operator("ReduceSum", known=_known_reduction(python.add))(_reduction(_sum))
operator("ReduceProd", known=_known_reduction(python.mul))(_reduction(_product))
operator("ReduceMax", known=_known_reduction(larger))(_reduction(_largest))
operator("ReduceMin", known=_known_reduction(smaller))(_reduction(_smallest))
operator("ReduceMean")(_reduction(_mean))
operator("ReduceLogSum")(_reduction(_log_sum, torch.log))
operator("ReduceLogSumExp")(_reduction(_log_sum_exp))
operator("ReduceSumSquare")(_reduction(_sum_square, torch.square))
operator("ReduceL1")(_reduction(_l1, torch.abs))
operator("ReduceL2")(_reduction(_l2, torch.abs))


def _arg(largest: bool) -> Callable[[Call], Tensor]:
    def run(call: Call) -> Tensor:
        x = call.tensor(0)
        axis, kept = axis_in(call.integer("axis", 0), x.dim()), bool(call.integer("keepdims", 1))
        pick = torch.argmax if largest else torch.argmin
        if not call.integer("select_last_index", 0):
            return pick(x, axis, kept)
        return x.shape[axis] - 1 - pick(torch.flip(x, [axis]), axis, kept)

    return run


operator("ArgMax")(_arg(True))
operator("ArgMin")(_arg(False))


def _cumulative(call: Call, function: Callable[[Tensor, int], Tensor], start: int) -> Tensor:
    x = call.tensor(0)
    axis = axis_in(int(call.number(1)), x.dim())
    if call.integer("reverse", 0):
        x = torch.flip(x, [axis])
    if call.integer("exclusive", 0):
        first = torch.full_like(x.narrow(axis, 0, 1), start)
        x = torch.cat([first, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
    result = to_type(function(x, axis), x.dtype)
    return torch.flip(result, [axis]) if call.integer("reverse", 0) else result


@operator("CumSum")
def cumulative_sum(call: Call) -> Tensor:
    """Sum up along an axis."""
    return _cumulative(call, torch.cumsum, 0)


@operator("CumProd")
def cumulative_product(call: Call) -> Tensor:
    """Multiply up along an axis."""
    return _cumulative(call, torch.cumprod, 1)
