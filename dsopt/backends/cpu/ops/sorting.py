"""Sorting and the largest elements."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from dsopt.backends.cpu.builder import Value
from dsopt.backends.cpu.emitter import Emitter, Extent
from dsopt.backends.cpu.registry import converter


@converter("aten.topk.default")
def convert_topk(
    cx: Emitter, x: fx.Node, k: Any, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[Value, ...]:
    """Write the k largest or smallest along an axis, and their places."""
    return _top(cx, x, cx.size(k), dim, largest)


@converter("aten.sort.default")
def convert_sort(cx: Emitter, x: fx.Node, dim: int = -1, descending: bool = False) -> tuple[Value, ...]:
    """Write a sort along an axis, and the places."""
    return _sorted(cx, x, dim, descending)


@converter("aten.sort.stable")
def convert_stable_sort(
    cx: Emitter, x: fx.Node, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[Value, ...]:
    """Write a sort that keeps the order of equal elements, as TopK does."""
    return _sorted(cx, x, dim, descending)


@converter("aten.argsort.default")
def convert_argsort(cx: Emitter, x: fx.Node, dim: int = -1, descending: bool = False) -> Value:
    """Write the places of a sort."""
    return _sorted(cx, x, dim, descending)[1]


@converter("aten.argsort.stable")
def convert_stable_argsort(cx: Emitter, x: fx.Node, *, stable: bool, dim: int = -1, descending: bool = False) -> Value:
    """Write the places of a stable sort."""
    return _sorted(cx, x, dim, descending)[1]


@converter("aten.msort.default")
def convert_msort(cx: Emitter, x: fx.Node) -> Value:
    """Write a sort along the first axis."""
    return _sorted(cx, x, 0, False)[0]


@converter("aten.kthvalue.default")
def convert_kthvalue(cx: Emitter, x: fx.Node, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Value, ...]:
    """Write the k-th smallest along an axis, and its place."""
    axis = cx.axis(dim, cx.rank(x))
    results = [cx.slice(each, axis, k - 1, k) for each in _top(cx, x, k, dim, False)]
    return tuple(each if keepdim else cx.squeeze(each, axis) for each in results)


@converter("aten.median.dim")
def convert_median(cx: Emitter, x: fx.Node, dim: int = -1, keepdim: bool = False) -> tuple[Value, ...]:
    """Write the lower median along an axis, and its place."""
    length = cx.fixed(cx.shape(x)[cx.axis(dim, cx.rank(x))], "the length that a median is taken of")
    return convert_kthvalue(cx, x, (length + 1) // 2, dim, keepdim)


def _sorted(cx: Emitter, x: fx.Node, dim: int, descending: bool) -> tuple[Value, ...]:
    if cx.rank(x) == 0:
        return cx.value(x), cx.constant(0, torch.int64)
    return _top(cx, x, cx.extent(x, cx.axis(dim, cx.rank(x))), dim, descending)


def _top(cx: Emitter, x: fx.Node, count: Extent, dim: int, largest: bool) -> tuple[Value, ...]:
    return cx.ops(
        "TopK",
        cx.value(x),
        cx.sizes([count]),
        dtypes=(None, torch.int64),
        axis=cx.axis(dim, cx.rank(x)),
        largest=int(largest),
        sorted=1,
    )
