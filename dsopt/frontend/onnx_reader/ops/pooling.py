"""Pooling: windows that may be dilated, padded unevenly, or start inside the last, incomplete stride."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dsopt.frontend.onnx_reader.call import Call, is_floating, to_type
from dsopt.frontend.onnx_reader.ops.convolution import (
    CONVOLUTIONS,
    is_symmetric,
    pad_spatial,
    paddings,
    per_axis,
)
from dsopt.frontend.onnx_reader.problems import MalformedError
from dsopt.frontend.onnx_reader.registry import operator
from dsopt.frontend.onnx_reader.sizes import larger

_MAX_POOLS = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_AVERAGE_POOLS = (torch.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
_GLOBAL_AVERAGES = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)


class _Window:
    """The window of one pooling node: one entry for each spatial axis in each list."""

    def __init__(self, call: Call, x: Tensor) -> None:
        kernel = call.integers("kernel_shape")
        if not kernel or len(kernel) != x.dim() - 2:
            raise MalformedError(f"attribute 'kernel_shape' is {kernel} for an input with {x.dim()} axes")
        if not 1 <= len(kernel) <= 3:
            raise call.unsupported(f"{call.node.op} over {len(kernel)} spatial axes", "1 to 3 spatial axes")
        self.kernel, self.count = per_axis(call, "kernel_shape", len(kernel)), len(kernel)
        self.strides, self.dilations = per_axis(call, "strides", self.count), per_axis(call, "dilations", self.count)
        self.before, self.after = paddings(call, x, kernel, self.strides, self.dilations)
        self.is_ceil = bool(call.integer("ceil_mode", 0))
        for axis, size in enumerate(x.shape[2:]):
            extent = (self.kernel[axis] - 1) * self.dilations[axis] + 1
            room = size + self.before[axis] + self.after[axis]
            if isinstance(room, int) and extent > room:
                raise MalformedError(f"a window of {extent} elements does not fit axis {axis + 2}, padded to {room}")

    def is_torch(self) -> bool:
        """Tell whether torch's own pooling takes this padding: even, and at most half the kernel."""
        halves = all(isinstance(b, int) and 2 * b <= k for b, k in zip(self.before, self.kernel, strict=True))
        return is_symmetric(self.before, self.after) and halves

    def reaching(self, x: Tensor) -> list[Any]:
        """Return the padding after each axis with which windows of the ceiling mode end exactly at the padded end."""
        if not self.is_ceil:
            return self.after
        result = []
        for axis in range(self.count):
            size, stride, before = x.shape[axis + 2], self.strides[axis], self.before[axis]
            extent = (self.kernel[axis] - 1) * self.dilations[axis] + 1
            windows = (size + before + self.after[axis] - extent + stride - 1) // stride + 1
            # A window that would start in the padding at the end is left out.
            if isinstance(size, int) and isinstance(before, int):
                windows -= int((windows - 1) * stride >= size + before)
            result.append(larger((windows - 1) * stride + extent - size - before, self.after[axis]))
        return result


@operator("MaxPool")
def max_pool(call: Call) -> Tensor | tuple[Tensor, Tensor]:
    """Take the largest of each window, and its flat index on demand."""
    x = call.tensor(0)
    window = _Window(call, x)
    if call.wants(1):
        return _max_pool_with_indices(call, x, window)
    y = x if is_floating(x) else x.to(torch.float32)  # 8-bit integers are exact in float32
    pool = _MAX_POOLS[window.count - 1]
    if window.is_torch():
        y = pool(y, window.kernel, window.strides, window.before, window.dilations, window.is_ceil)
    else:
        padded = pad_spatial(y, window.before, window.reaching(x), -math.inf)
        y = pool(padded, window.kernel, window.strides, 0, window.dilations)
    return to_type(y, x.dtype)


def _max_pool_with_indices(call: Call, x: Tensor, window: _Window) -> tuple[Tensor, Tensor]:
    """Return values and indices into the whole flattened input; torch's are into each plane."""
    if not window.is_torch():
        raise call.unsupported("indices of MaxPool with uneven or wide padding", "even padding up to half the kernel")
    pool = (F.max_pool1d_with_indices, F.max_pool2d_with_indices, F.max_pool3d_with_indices)[window.count - 1]
    y = x if is_floating(x) else x.to(torch.float32)
    values, indices = pool(y, window.kernel, window.strides, window.before, window.dilations, window.is_ceil)
    spatial = x.shape[2:]
    if call.integer("storage_order", 0) and window.count > 1:
        place, strides = torch.zeros_like(indices), [1]
        for size in spatial[:-1]:
            strides.append(strides[-1] * size)
        rest = indices
        for size, stride in zip(reversed(spatial), reversed(strides), strict=True):
            place = place + (rest % size) * stride
            rest = torch.div(rest, size, rounding_mode="floor")
        indices = place
    planes = torch.arange(x.shape[0] * x.shape[1]).reshape([x.shape[0], x.shape[1]] + [1] * window.count)
    return to_type(values, x.dtype), indices + planes * math.prod(spatial)


@operator("AveragePool")
def average_pool(call: Call) -> Tensor:
    """Average each window; the padding counts on demand."""
    x = call.tensor(0)
    window = _Window(call, x)
    counted = bool(call.integer("count_include_pad", 0))
    is_plain = all(dilation == 1 for dilation in window.dilations)
    if window.is_torch() and is_plain:
        pool = _AVERAGE_POOLS[window.count - 1]
        return pool(x, window.kernel, window.strides, window.before, window.is_ceil, counted)
    sums = _window_sums(x, window)
    ones = torch.ones([1, 1, *x.shape[2:]], dtype=x.dtype)
    if not counted:
        return sums / _window_sums(ones, window)
    inside = pad_spatial(ones, window.before, window.after, 1.0)
    reach = [far - near for far, near in zip(window.reaching(x), window.after, strict=True)]
    inside = pad_spatial(inside, [0] * window.count, reach)
    return sums / _sums_of(inside, window)


def _window_sums(x: Tensor, window: _Window) -> Tensor:
    return _sums_of(pad_spatial(x, window.before, window.reaching(x)), window)


def _sums_of(padded: Tensor, window: _Window) -> Tensor:
    """Sum each window of a padded tensor, by a convolution with ones on each plane."""
    planes = padded.flatten(0, 1).unsqueeze(1)
    ones = torch.ones([1, 1, *window.kernel], dtype=padded.dtype)
    sums = CONVOLUTIONS[window.count - 1](planes, ones, None, window.strides, 0, window.dilations)
    return sums.reshape(*padded.shape[:2], *sums.shape[2:])


@operator("GlobalAveragePool")
def global_average_pool(call: Call) -> Tensor:
    """Average each plane."""
    x = call.tensor(0)
    count = x.dim() - 2
    if 1 <= count <= 3:
        return _GLOBAL_AVERAGES[count - 1](x, 1)
    return x if count < 1 else x.mean(list(range(2, x.dim())), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(call: Call) -> Tensor:
    """Take the largest of each plane."""
    x = call.tensor(0)
    return x.amax(list(range(2, x.dim())), keepdim=True) if x.dim() > 2 else x


@operator("LpPool")
def lp_pool(call: Call) -> Tensor:
    """Take the p-norm of each window."""
    x, p = call.tensor(0), call.integer("p", 2)
    return _window_sums(x.abs().pow(p), _Window(call, x)).pow(1.0 / p)


@operator("GlobalLpPool")
def global_lp_pool(call: Call) -> Tensor:
    """Take the p-norm of each plane."""
    x, p = call.tensor(0), call.integer("p", 2)
    return x.abs().pow(p).sum(list(range(2, x.dim())), keepdim=True).pow(1.0 / p)


@operator("MaxUnpool")
def max_unpool(call: Call) -> Tensor:
    """Put values back where MaxPool's flat indices say, zeros elsewhere."""
    x, indices = call.tensor(0), call.tensor(1)
    kernel = call.integers("kernel_shape") or []
    count = len(kernel)
    strides = per_axis(call, "strides", count)
    pads = call.integers("pads") or [0] * (2 * count)
    inferred = [
        (x.shape[axis + 2] - 1) * strides[axis] + kernel[axis] - pads[axis] - pads[axis + count]
        for axis in range(count)
    ]
    shape = [*x.shape[:2], *inferred]
    flat = torch.zeros([math.prod(shape)], dtype=x.dtype).scatter(0, indices.reshape(-1), x.reshape(-1))
    result = flat.reshape(shape)
    if not call.has(2):
        return result
    wanted = call.numbers(2)
    return pad_spatial(result, [0] * count, [want - have for want, have in zip(wanted[2:], inferred, strict=True)])
