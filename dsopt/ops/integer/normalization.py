"""q_softmax by tables of the exponential, and q_layer_norm by an integer square root."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from dsopt.ops.integer.common import TORCH_DTYPES, Array, integer_operator, narrow
from dsopt.ops.rounding import high_product, shift_right

FINE_BITS = 30
"""Bits after the point of the table of the lower half of a 16-bit difference."""

NORM_BITS = 24
"""Bits after the point of a normalised value, which is below the root of NORM_ELEMENTS: times 31 bits, it fits int64."""

NORM_ELEMENTS = 1 << 14
"""A row that is normalised has fewer."""


def q_softmax(x: Array, coarse: Array, fine: Array | None, mask: Array | None, axis: int, bits: int) -> Array:
    """Return exp(x - max) / sum along an axis, as int8 in steps of 1/256 from -128 on, or as int16 in steps of 1/32768 from 0 on.

    coarse: (256,) int32, exp(-d scale) 2^T by the difference d to the largest int8; with int16 x, by d / 256, and fine: (256,) int32,
    exp(-d scale) 2^30 by d % 256.  mask: bool, broadcast; what is false takes no part, and a row without any true is all zeros.

    With bits = 8, a kernel divides in int32: coarse must not exceed 2^22 (T <= 22), and `size * coarse[0]` must stay below 2^30,
    size being that of the axis. With bits = 16 it divides in int64, and `size * coarse[0]` must stay below 2^47.
    """
    seen = np.ones(x.shape, bool) if mask is None else np.broadcast_to(mask, x.shape)
    values = np.where(seen, x.astype(np.int64), np.iinfo(np.int64).min)
    largest = values.max(axis, keepdims=True)
    difference = np.where(seen, largest - np.where(seen, values, largest), 0)
    if fine is None:
        powers = coarse.astype(np.int64)[difference]
    else:
        powers = coarse.astype(np.int64)[difference >> 8] * fine.astype(np.int64)[difference & 255]
        powers = shift_right(powers, FINE_BITS)
    powers = np.where(seen, powers, 0)
    total = powers.sum(axis, keepdims=True)
    steps = 1 << (8 if bits == 8 else 15)
    y = (powers * steps + total // 2) // np.maximum(total, 1)
    zero, high = (-128, 127) if bits == 8 else (0, 32767)
    return narrow(np.minimum(y + zero, high), bits)


def q_layer_norm(
    x: Array, multiplier: Array, offset: Array, count: int, epsilon: int, extra_bits: int, y_zero: int, low: int, high: int, bits: int
) -> Array:  # fmt: skip
    """Normalise the last `count` elements of each row, which are the last dims of x, to mean 0 and variance 1; scale and shift them.

    With n = count, S and Q the sums of a row and of its squares: (n x - S) / sqrt(n Q - S^2 + epsilon), in which the scale and the
    zero point of x do not occur, with 24 bits after the point; then times multiplier[i] / 2^31 plus offset[i], over 2^extra_bits.
    multiplier, offset: (n,) int32.  epsilon: at least 1; n must stay below `NORM_ELEMENTS`, n^2 times
    the square of the largest |x| below 2^62.
    """
    rows = x.reshape(-1, count).astype(np.int64)
    total, squares = rows.sum(1), (rows * rows).sum(1)
    inverse, shift = _inverse_root(count * squares - total * total + epsilon)
    centred = count * rows - total[:, None]
    normal = (centred * inverse[:, None] + (np.int64(1) << (shift - 1))[:, None]) >> shift[:, None]
    y = shift_right(high_product(normal, multiplier) + offset.astype(np.int64), extra_bits)
    return narrow(np.clip(y + y_zero, low, high), bits).reshape(x.shape)


def _inverse_root(variance: Array) -> tuple[Array, Array]:
    """Return (inverse, shift) with inverse / 2^shift = 2^24 / sqrt(variance) for 0 < variance < 2^62.

    The variance is shifted left by an even number of bits to 2^60..2^62, its root R is 2^30 <= R < 2^31, and inverse = 2^61 // R,
    which is above 2^30 and at most 2^31.
    """
    inverses, shifts = [], []
    for value in variance.tolist():
        left = (62 - value.bit_length()) // 2 * 2
        inverses.append((1 << 61) // math.isqrt(value << left))
        shifts.append(61 - NORM_BITS - left // 2)
    return np.array(inverses, np.int64), np.array(shifts, np.int64)


def _softmax_shape(x: Tensor, coarse: Tensor, fine: Tensor | None, mask: Tensor | None, axis: int, bits: int) -> Tensor:
    return torch.empty_like(x, dtype=TORCH_DTYPES[bits])


def _norm_shape(x: Tensor, *rest: int) -> Tensor:
    return torch.empty_like(x, dtype=TORCH_DTYPES[rest[-1]])


integer_operator(
    "q_softmax(Tensor x, Tensor coarse, Tensor? fine, Tensor? mask, int axis, int bits) -> Tensor",
    q_softmax,
    _softmax_shape,
)
integer_operator(
    "q_layer_norm(Tensor x, Tensor multiplier, Tensor offset, int count, int epsilon, int extra_bits, int y_zero, int low, int high, "
    "int bits) -> Tensor",
    q_layer_norm,
    _norm_shape,
)
