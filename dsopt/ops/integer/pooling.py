"""q_max_pool, q_avg_pool and q_mean."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dsopt.ops.integer.common import TORCH_DTYPES, Array, finish, integer_operator

OUTPUT = "int y_zero, int low, int high, int bits"
WINDOW = "int[] kernel, int[] stride, int[] padding"


def pooled_sizes(
    sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], ceil_mode: bool
) -> list[int]:  # fmt: skip
    """Return the spatial sizes of a pooled image; with ceil_mode a window may end, but not begin, beyond the padded image."""
    result = []
    for size, k, s, p, d in zip(sizes, kernel, stride, padding, dilation, strict=True):
        free = size + 2 * p - d * (k - 1) - 1
        count = (free + (s - 1 if ceil_mode else 0)) // s + 1
        result.append(count - 1 if ceil_mode and (count - 1) * s >= size + p else count)
    return result


def _windows(
    x: Array, fill: int, out: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[Array]:  # fmt: skip
    """Return for each kernel position the (C, *out) elements that it meets; those beyond the image are `fill`."""
    ends = [(o - 1) * s + d * (k - 1) + 1 for o, s, d, k in zip(out, stride, dilation, kernel, strict=True)]
    widths = [(p, max(end - p - size, 0)) for p, end, size in zip(padding, ends, x.shape[1:], strict=True)]
    padded = np.pad(x, [(0, 0), *widths], constant_values=fill)
    found = []
    for taps in product(*map(range, kernel)):
        starts = [t * d for t, d in zip(taps, dilation, strict=True)]
        cuts = [slice(a, a + (o - 1) * s + 1, s) for a, o, s in zip(starts, out, stride, strict=True)]
        place: tuple[Any, ...] = (..., *cuts)
        found.append(padded[place])
    return found


def q_max_pool(
    x: Array, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], ceil_mode: bool
) -> Array:  # fmt: skip
    """Return the largest integers of windows over the last len(kernel) dims; padding never wins."""
    rank = len(kernel)
    flat = x.reshape(-1, *x.shape[-rank:])
    out = pooled_sizes(flat.shape[1:], kernel, stride, padding, dilation, ceil_mode)
    largest = np.max(_windows(flat, int(np.iinfo(x.dtype).min), out, kernel, stride, padding, dilation), 0)
    result: Array = largest.reshape(*x.shape[:-rank], *out)
    return result


def q_avg_pool(
    x: Array, multiplier: Array, shift: Array, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil_mode: bool,
    count_include_pad: bool, x_zero: int, y_zero: int, low: int, high: int, bits: int,
) -> Array:  # fmt: skip
    """Return the requantised sums of windows over the last len(kernel) dims.

    multiplier, shift: (1 + most elements of a window,) int32, by the number of elements that the average divides by.
    """
    rank = len(kernel)
    flat = x.reshape(-1, *x.shape[-rank:]).astype(np.int64) - x_zero
    ones = [1] * rank
    out = pooled_sizes(flat.shape[1:], kernel, stride, padding, ones, ceil_mode)
    total = np.sum(_windows(flat, 0, out, kernel, stride, padding, ones), 0)
    inside = np.ones((1, *flat.shape[1:]), np.int64)
    borders: Sequence[int] = [0] * rank
    if count_include_pad:
        inside = np.pad(inside, [(0, 0), *((p, p) for p in padding)], constant_values=1)
    else:
        borders = padding
    count = np.sum(_windows(inside, 0, out, kernel, stride, borders, ones), 0)
    y = finish(total, multiplier[count], shift[count], y_zero, low, high, bits, False)
    return y.reshape(*x.shape[:-rank], *out)


def q_mean(
    x: Array, dims: Sequence[int], keepdim: bool, multiplier: int, shift: int, x_zero: int, y_zero: int, low: int,
    high: int, bits: int,
) -> Array:  # fmt: skip
    """Return the requantised sums over some dims (none are all, as in torch)."""
    total: Array = np.asarray(np.sum(x.astype(np.int64) - x_zero, tuple(dims) or None, keepdims=keepdim))
    return finish(total, multiplier, shift, y_zero, low, high, bits, False)


def _float(x: Tensor) -> Tensor:
    """Return an image without data, as torch's own rule takes it: with dims for batch and channels, and floats."""
    return x.new_empty(x.shape, dtype=torch.float32)


def _max_shape(
    x: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil_mode: bool
) -> Tensor:  # fmt: skip
    pool = (F.max_pool1d, F.max_pool2d)[len(kernel) - 1]
    return torch.empty_like(pool(_float(x), kernel, stride, padding, dilation, ceil_mode), dtype=x.dtype)


def _avg_shape(
    x: Tensor, multiplier: Tensor, shift: Tensor, kernel: list[int], stride: list[int], padding: list[int], ceil_mode: bool,
    *rest: int,
) -> Tensor:  # fmt: skip
    pool = (F.avg_pool1d, F.avg_pool2d)[len(kernel) - 1]
    return torch.empty_like(pool(_float(x), kernel, stride, padding, ceil_mode), dtype=TORCH_DTYPES[rest[-1]])


def _mean_shape(x: Tensor, dims: list[int], keepdim: bool, *rest: int) -> Tensor:
    return torch.empty_like(torch.sum(_float(x), dims, keepdim), dtype=TORCH_DTYPES[rest[-1]])


integer_operator(
    f"q_max_pool(Tensor x, {WINDOW}, int[] dilation, bool ceil_mode) -> Tensor",
    q_max_pool,
    _max_shape,
)
integer_operator(
    f"q_avg_pool(Tensor x, Tensor multiplier, Tensor shift, {WINDOW}, bool ceil_mode, bool count_include_pad, "
    f"int x_zero, {OUTPUT}) -> Tensor",
    q_avg_pool,
    _avg_shape,
)
integer_operator(
    f"q_mean(Tensor x, int[] dims, bool keepdim, int multiplier, int shift, int x_zero, {OUTPUT}) -> Tensor",
    q_mean,
    _mean_shape,
)
