"""q_conv, q_linear and q_matmul: sums of products, requantised."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dsopt.ops.integer.common import TORCH_DTYPES, Array, finish, integer_operator, stored_weight

WEIGHTS = "Tensor? factors, int group, int[] weight_shape, int weight_bits"
OUTPUT = "int y_zero, int low, int high, int bits, bool wide"


def q_conv(
    x: Array, weight: Array, bias: Array | None, multiplier: Array, shift: Array, factors: Array | None, group: int,
    weight_shape: Sequence[int], weight_bits: int, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    transposed: bool, output_padding: Sequence[int], groups: int, x_zero: int, y_zero: int, low: int, high: int, bits: int, wide: bool,
) -> Array:  # fmt: skip
    """Convolve (B, C, *spatial) integers in one or two spatial dims; padding stands for the real number 0.

    weight: (N, C / groups, *kernel), or (C, N / groups, *kernel) when transposed; bias: (N,) int32.  padding: for each dim, or
    before each dim and then after each, where the convolution is not transposed.  Returns (B, N, *spatial').
    """
    w = stored_weight(weight, weight_shape, weight_bits, factors, group).astype(np.float64)
    real = x.astype(np.float64) - x_zero
    convolve = _scattered if transposed else _gathered
    acc = convolve(real, w, stride, padding, dilation, output_padding, groups)
    spread = (-1, *[1] * len(stride))
    acc = acc.astype(np.int64) + (0 if bias is None else bias.astype(np.int64).reshape(spread))
    return finish(acc, multiplier.reshape(spread), shift.reshape(spread), y_zero, low, high, bits, wide)


def both_sides(padding: Sequence[int], rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the padding before and after each spatial dim."""
    return tuple(padding[:rank]), tuple(padding[-rank:])


def _gathered(
    x: Array, w: Array, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], extra: Sequence[int], groups: int
) -> Array:  # fmt: skip
    """Sum over kernel positions: y[o] += w[t] x[o * stride + t * dilation - padding]. Exact: all values are whole numbers."""
    B, C = x.shape[:2]
    kernel, N = w.shape[2:], w.shape[0]
    padded = np.pad(x, [(0, 0), (0, 0), *zip(*both_sides(padding, len(stride)), strict=True)])
    sizes = [(padded.shape[i + 2] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(len(kernel))]
    y = np.zeros((B, groups, N // groups, int(np.prod(sizes))))
    for taps in product(*map(range, kernel)):
        tap: tuple[Any, ...] = (..., *taps)
        window = _strided(taps, sizes, stride, dilation)
        columns = padded[window].reshape(B, groups, C // groups, -1)
        y += w[tap].reshape(groups, N // groups, -1) @ columns
    return y.reshape(B, N, *sizes)


def _scattered(
    x: Array, w: Array, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], extra: Sequence[int], groups: int
) -> Array:  # fmt: skip
    """Add each input to where its products belong: y[i * stride + t * dilation - padding] += w[t] x[i]."""
    B, C, *sizes = x.shape
    kernel, N_g = w.shape[2:], w.shape[1]
    full = [(sizes[i] - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1 + extra[i] for i in range(len(kernel))]
    y = np.zeros((B, groups * N_g, *full))
    columns = x.reshape(B, groups, C // groups, -1)
    for taps in product(*map(range, kernel)):
        tap: tuple[Any, ...] = (..., *taps)
        turned = w[tap].reshape(groups, C // groups, N_g).swapaxes(1, 2)
        window = _strided(taps, sizes, stride, dilation)
        y[window] += (turned @ columns).reshape(B, groups * N_g, *sizes)
    inner: tuple[Any, ...] = (..., *(slice(p, size - p) for p, size in zip(padding, full, strict=True)))
    result: Array = y[inner]
    return result


def _strided(
    taps: Sequence[int], sizes: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[Any, ...]:
    """Return the index of the elements that a kernel position meets as the kernel moves over `sizes` places."""
    starts = [tap * step for tap, step in zip(taps, dilation, strict=True)]
    cuts = [slice(a, a + (n - 1) * s + 1, s) for a, n, s in zip(starts, sizes, stride, strict=True)]
    return (..., *cuts)


def convolution_shape(
    x: Tensor, weight: Tensor, bias: Tensor | None, multiplier: Tensor, shift: Tensor, factors: Tensor | None, group: int,
    weight_shape: Sequence[int], weight_bits: int, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    transposed: bool, output_padding: Sequence[int], groups: int, x_zero: int, y_zero: int, low: int, high: int, bits: int, wide: bool,
) -> Tensor:  # fmt: skip
    """Return the result without data."""
    image = x.new_empty(x.shape, dtype=torch.float32)
    kernel = x.new_empty(tuple(weight_shape), dtype=torch.float32)
    rank = len(stride)
    if len(padding) == 2 * rank:
        before, after = both_sides(padding, rank)
        image = F.pad(image, [side for pair in zip(before[::-1], after[::-1], strict=True) for side in pair])
        padding = [0] * rank
    y = torch.convolution(image, kernel, None, stride, padding, dilation, transposed, output_padding, groups)
    return torch.empty_like(y, dtype=TORCH_DTYPES[bits])


def q_linear(
    x: Array, weight: Array, bias: Array | None, multiplier: Array, shift: Array, factors: Array | None, group: int,
    weight_shape: Sequence[int], weight_bits: int, x_zero: int, y_zero: int, low: int, high: int, bits: int, wide: bool,
) -> Array:  # fmt: skip
    """Multiply (..., K) integers with the transpose of a (N, K) weight; bias: (N,) int32. Returns (..., N)."""
    w = stored_weight(weight, weight_shape, weight_bits, factors, group)
    acc = ((x.astype(np.float64) - x_zero) @ w.astype(np.float64).T).astype(np.int64)  # exact: whole numbers below 2^53
    acc = acc + (0 if bias is None else bias.astype(np.int64))
    return finish(acc, multiplier, shift, y_zero, low, high, bits, wide)


def _linear_shape(x: Tensor, weight: Tensor, bias: Tensor | None, multiplier: Tensor, *rest: object) -> Tensor:
    shape, bits = rest[3], rest[9]
    return x.new_empty((*x.shape[:-1], shape[0]), dtype=TORCH_DTYPES[bits])  # type: ignore[index]


def q_matmul(
    a: Array, b: Array, a_zero: int, b_zero: int, multiplier: int, shift: int, y_zero: int, low: int, high: int, bits: int, wide: bool
) -> Array:  # fmt: skip
    """Multiply (..., M, K) with (..., K, N) integers, leading dims broadcast. Returns (..., M, N)."""
    acc = ((a.astype(np.float64) - a_zero) @ (b.astype(np.float64) - b_zero)).astype(np.int64)
    return finish(acc, multiplier, shift, y_zero, low, high, bits, wide)


def _matmul_shape(a: Tensor, b: Tensor, *rest: object) -> Tensor:
    y = torch.matmul(a.new_empty(a.shape, dtype=torch.float32), b.new_empty(b.shape, dtype=torch.float32))
    return torch.empty_like(y, dtype=TORCH_DTYPES[rest[7]])  # type: ignore[index]


CONVOLUTION = (
    f"Tensor x, Tensor weight, Tensor? bias, Tensor multiplier, Tensor shift, {WEIGHTS}, SymInt[] stride, SymInt[] padding, "
    f"SymInt[] dilation, bool transposed, SymInt[] output_padding, SymInt groups, int x_zero, {OUTPUT}"
)
CONVOLUTION_ARGUMENTS = 21

integer_operator(f"q_conv({CONVOLUTION}) -> Tensor", q_conv, convolution_shape)
integer_operator(
    f"q_linear(Tensor x, Tensor weight, Tensor? bias, Tensor multiplier, Tensor shift, {WEIGHTS}, int x_zero, {OUTPUT}) -> Tensor",
    q_linear,
    _linear_shape,
)
integer_operator(
    f"q_matmul(Tensor a, Tensor b, int a_zero, int b_zero, int multiplier, int shift, {OUTPUT}) -> Tensor",
    q_matmul,
    _matmul_shape,
)
