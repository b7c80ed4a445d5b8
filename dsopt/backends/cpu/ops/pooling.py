"""Pooling: windows of the maximum and the mean, and adaptive pooling to a given size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from dsopt.backends.cpu.builder import Value
from dsopt.backends.cpu.emitter import Dim, Emitter
from dsopt.backends.cpu.ops.convolution import spread
from dsopt.backends.cpu.registry import RefusalError, converter


@converter("aten.max_pool1d.default", "aten.max_pool2d.default", "aten.max_pool3d.default")
def convert_max_pool(
    cx: Emitter,
    x: fx.Node,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Value:
    """Write max pooling."""
    spatial = len(kernel_size)
    value, lift = _lifted(cx, x, spatial)
    strides, pads = _strides(stride, kernel_size), spread(padding, spatial)
    ends, ceil = _ends(
        cx.shape(x)[-spatial:],
        cx.out.shape[-spatial:],
        kernel_size,
        strides,
        pads,
        spread(dilation, spatial),
        ceil_mode,
    )
    y = cx.op(
        "MaxPool", value, kernel_shape=list(kernel_size), strides=strides, pads=[*pads, *ends],
        dilations=_unless_one(spread(dilation, spatial)), ceil_mode=ceil,
    )  # fmt: skip
    return cx.squeeze(y, 0) if lift else y


@converter(
    "aten.max_pool1d_with_indices.default",
    "aten.max_pool2d_with_indices.default",
    "aten.max_pool3d_with_indices.default",
)
def convert_max_pool_with_indices(
    cx: Emitter,
    x: fx.Node,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> tuple[Value, None]:
    """Write max pooling without the indices, which nothing may read."""
    if cx.used(1):
        raise RefusalError("the indices of max pooling are read", "unpool by interpolation or a transposed convolution")
    recorded = cx.node.meta["val"]
    cx.node.meta["val"] = recorded[0]
    try:
        return convert_max_pool(cx, x, kernel_size, stride, padding, dilation, ceil_mode), None
    finally:
        cx.node.meta["val"] = recorded


@converter("aten.avg_pool1d.default", "aten.avg_pool2d.default", "aten.avg_pool3d.default")
def convert_avg_pool(
    cx: Emitter,
    x: fx.Node,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    """Write mean pooling; a window that ceil_mode lets reach beyond the padding counts only what lies within."""
    spatial = len(kernel_size)
    value, lift = _lifted(cx, x, spatial)
    strides, pads = _strides(stride, kernel_size), spread(padding, spatial)
    ends, ceil = _ends(
        cx.shape(x)[-spatial:], cx.out.shape[-spatial:], kernel_size, strides, pads, [1] * spatial, ceil_mode
    )
    attributes: dict[str, Any] = {"kernel_shape": list(kernel_size), "strides": strides, "ceil_mode": ceil}
    if divisor_override is not None:
        elements = int(torch.Size(kernel_size).numel())
        y = cx.op("AveragePool", value, pads=[*pads, *ends], count_include_pad=1, **attributes)
        y = cx.op("Mul", y, cx.constant(elements / divisor_override, value.dtype))
    elif any(pads) and count_include_pad and (ends != pads or ceil):
        value = cx.op("Pad", value, cx.vector([0, 0, *pads, 0, 0, *pads]))
        extra = [end - pad for end, pad in zip(ends, pads, strict=True)]
        y = cx.op("AveragePool", value, pads=[*([0] * spatial), *extra], count_include_pad=0, **attributes)
    else:
        include = 1 if count_include_pad and any(pads) else 0
        y = cx.op("AveragePool", value, pads=[*pads, *ends], count_include_pad=include, **attributes)
    return cx.squeeze(y, 0) if lift else y


def _lifted(cx: Emitter, x: fx.Node, spatial: int) -> tuple[Value, bool]:
    """Return the value with a batch axis, and whether it was added."""
    lift = cx.rank(x) == spatial + 1
    return (cx.unsqueeze(cx.value(x), 0) if lift else cx.value(x)), lift


def _strides(stride: Any, kernel: Sequence[int]) -> list[int]:
    return list(kernel) if stride is None or stride in ([], ()) else spread(stride, len(kernel))


def _unless_one(numbers: list[int]) -> list[int] | None:
    return None if all(number == 1 for number in numbers) else numbers


def _ends(
    before: Sequence[Dim],
    after: Sequence[Dim],
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    ceil_mode: bool,
) -> tuple[list[int], int | None]:
    """Return the padding at the ends that gives the recorded sizes without ceil_mode, which runtimes understand differently.

    Where sizes vary, returns the plain padding and ceil_mode itself.
    """
    if not ceil_mode:
        return list(pads), None
    ends: list[int] = []
    for size, result, k, stride, pad, dilation in zip(before, after, kernel, strides, pads, dilations, strict=True):
        if not isinstance(size, int) or not isinstance(result, int):
            return list(pads), 1
        ends.append(max(pad, (result - 1) * stride + dilation * (k - 1) + 1 - size - pad))
    return ends, None


# ---- adaptive pooling ----


@converter("aten.adaptive_avg_pool1d.default", "aten.adaptive_avg_pool2d.default", "aten.adaptive_avg_pool3d.default",
           "aten._adaptive_avg_pool2d.default", "aten._adaptive_avg_pool3d.default")  # fmt: skip
def convert_adaptive_avg_pool(cx: Emitter, x: fx.Node, output_size: Any) -> Value:
    """Write adaptive mean pooling: globally, in equal windows, or as one averaging matrix for each axis."""
    spatial = len(output_size)
    targets = _targets(cx, x, spatial)
    value, lift = _lifted(cx, x, spatial)
    sizes = cx.shape(x)[-spatial:]
    if all(target == 1 for target in targets):
        y = cx.op("GlobalAveragePool", value)
    elif windows := _equal_windows(sizes, targets):
        y = cx.op("AveragePool", value, kernel_shape=windows, strides=windows)
    else:
        y = _averaged(cx, value, sizes, targets)
    return cx.squeeze(y, 0) if lift else y


def _targets(cx: Emitter, x: fx.Node, spatial: int) -> list[Dim]:
    out = cx.out[0] if isinstance(cx.out, (tuple, list)) else cx.out
    return list(out.shape[-spatial:])


def _equal_windows(sizes: Sequence[Dim], targets: Sequence[Dim]) -> list[int]:
    """Return the size of the windows if they are equal, else []."""
    if not all(isinstance(a, int) and isinstance(b, int) and a % b == 0 for a, b in zip(sizes, targets, strict=True)):
        return []
    return [int(a) // int(b) for a, b in zip(sizes, targets, strict=True)]


def _bins(size: int, target: int) -> list[tuple[int, int]]:
    """Return start and end of each window, as torch's adaptive pooling places them."""
    return [(i * size // target, -(-(i + 1) * size // target)) for i in range(target)]


def _fixed_sizes(cx: Emitter, sizes: Sequence[Dim], targets: Sequence[Dim]) -> list[tuple[int, int]]:
    what = "the size that is pooled to more than one value"
    return [(cx.fixed(a, what), cx.fixed(b, what)) for a, b in zip(sizes, targets, strict=True)]


def _averaged(cx: Emitter, value: Value, sizes: Sequence[Dim], targets: Sequence[Dim]) -> Value:
    """Multiply every spatial axis by a matrix that averages its windows: (B, C, ..., size) -> (B, C, ..., target)."""
    pairs = _fixed_sizes(cx, sizes, targets)
    for axis, (size, target) in reversed(list(enumerate(pairs))):
        matrix = torch.zeros(target, size, dtype=torch.float64)
        for row, (start, end) in enumerate(_bins(size, target)):
            matrix[row, start:end] = 1 / (end - start)
        if axis == len(pairs) - 1:
            value = cx.op("MatMul", value, cx.constant(matrix.T, value.dtype))
        elif axis == len(pairs) - 2:
            value = cx.op("MatMul", cx.constant(matrix, value.dtype), value)
        else:  # the first of three: the two that follow are pooled already
            rows = [pair[1] for pair in pairs[axis + 1 :]]
            flat = cx.op("Reshape", value, cx.vector([0, 0, size, rows[0] * rows[1]]))
            flat = cx.op("MatMul", cx.constant(matrix, value.dtype), flat)
            value = cx.op("Reshape", flat, cx.vector([0, 0, target, *rows]))
    return value


@converter("aten.adaptive_max_pool1d.default", "aten.adaptive_max_pool2d.default", "aten.adaptive_max_pool3d.default")
def convert_adaptive_max_pool(cx: Emitter, x: fx.Node, output_size: Any) -> tuple[Value, None]:
    """Write adaptive max pooling: globally, in equal windows, or window by window along each axis."""
    if cx.used(1):
        raise RefusalError("the indices of adaptive max pooling are read", "use the pooled values only")
    spatial = len(output_size)
    targets = _targets(cx, x, spatial)
    value, lift = _lifted(cx, x, spatial)
    sizes = cx.shape(x)[-spatial:]
    if all(target == 1 for target in targets):
        y = cx.op("GlobalMaxPool", value)
    elif windows := _equal_windows(sizes, targets):
        y = cx.op("MaxPool", value, kernel_shape=windows, strides=windows)
    else:
        y = value
        for axis, (size, target) in enumerate(_fixed_sizes(cx, sizes, targets), start=2):
            parts = [
                cx.op("ReduceMax", cx.slice(y, axis, start, end), cx.vector([axis]), keepdims=1)
                for start, end in _bins(size, target)
            ]
            y = cx.concat(parts, axis)
    return (cx.squeeze(y, 0) if lift else y), None
