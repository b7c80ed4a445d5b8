"""How real numbers become integers: the one place where that is decided. All code, generated or not, gives these bits.

An integer q stands for the real number scale * (q - zero_point).

    quantize     q = clamp(rint(x / scale) + zero_point, low, high)     float32; ties to even, as ONNX's QuantizeLinear
    dequantize   x = float32(q - zero_point) * scale                    float32
    requantize   q = clamp(shift_right(high_product(acc, m), s) + zero_point, low, high)
                 high_product(acc, m) = floor((acc * m + 2^30) / 2^31)           the factor m / 2^31, ties upwards
                 shift_right(h, s) = floor((h + (h < 0 ? -1 : 0) + 2^(s-1)) / 2^s)   the factor 2^-s, ties away from zero

`requantize` multiplies an exact int32 sum by the real number m / 2^31 / 2^s with 2^30 <= m < 2^31. Its two roundings are those of
gemmlowp and TensorFlow Lite (Jacob et al. 2018, section 2.2); a Cortex-M4 does both in five instructions: smmulr of acc << 1
with m, then an addition, an addition and a shift. That form needs |acc| < 2^30 and 1 <= s <= 22; where s <= 0, acc is shifted
left by -s before the product, and nothing is shifted after it. The sum that a kernel may reach is bounded from its actual
weights when it is lowered: below `ACCUMULATOR_LIMIT` it is kept in int32, below `WIDE_LIMIT` in int64, by the same formula.

Sums of two rescaled tensors (`add`) and plain rescaling use whole-numbered factors over one shift, `common_factors`, and are
rounded once, by shift_right.

The functions take and give NumPy int64 arrays, in which none of these operations overflows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

ACCUMULATOR_LIMIT = 1 << 30
"""Sums of magnitude below this are kept in int32: twice the sum must fit."""

WIDE_LIMIT = 1 << 32
"""Sums of magnitude below this are kept in int64: the product with a multiplier must fit."""

MIN_SHIFT, MAX_SHIFT = -2, 30
"""The shifts that `requantize` takes."""

FACTOR_BITS = 20
"""Whole-numbered factors are at most 2 to this power, so that 255 times two of them stay below 2^30."""


def float_bounds(low: int, high: int) -> tuple[float, float]:
    """Return the outermost float32 numbers that are not outside of low..high: those that may be cast to an integer type."""
    least, most = np.float32(low), np.float32(high)
    least = np.nextafter(least, np.float32(np.inf)) if float(least) < low else least
    most = np.nextafter(most, np.float32(-np.inf)) if float(most) > high else most
    return float(least), float(most)


def quantize(x: Array, scale: float | Array, zero_point: int | Array, low: int, high: int) -> Array:
    """Return the int64 nearest to float32 x on the grid; NaN becomes the zero point. scale broadcasts against x."""
    with np.errstate(over="ignore", invalid="ignore"):
        steps = np.rint(np.asarray(x, np.float32) / np.asarray(scale, np.float32))
    shifted = np.where(np.isnan(steps), np.float32(0), steps) + np.asarray(zero_point, np.float32)
    q: Array = np.clip(shifted, *float_bounds(low, high)).astype(np.int64)
    return q


def dequantize(q: Array, scale: float | Array, zero_point: int | Array) -> Array:
    """Return the float32 that integers stand for."""
    real: Array = (q.astype(np.int64) - zero_point).astype(np.float32) * np.asarray(scale, np.float32)
    return real


def high_product(acc: Array, multiplier: int | Array) -> Array:
    """Return acc * multiplier / 2^31, ties upwards."""
    product: Array = (acc * np.asarray(multiplier, np.int64) + (1 << 30)) >> 31
    return product


def shift_right(h: Array, shift: int | Array) -> Array:
    """Return h / 2^shift, ties away from zero; h itself where shift is 0 or less."""
    by = np.maximum(np.asarray(shift, np.int64), 0)
    half = np.where(by > 0, np.int64(1) << np.maximum(by - 1, 0), 0)
    sign = np.where(by > 0, h >> 63, 0)
    result: Array = (h + sign + half) >> by
    return result


def requantize(acc: Array, multiplier: int | Array, shift: int | Array, zero_point: int, low: int, high: int) -> Array:
    """Return clamp(acc * multiplier / 2^31 / 2^shift + zero_point, low, high) with the two roundings of this module."""
    left = np.maximum(-np.asarray(shift, np.int64), 0)
    near = np.where(left > 0, np.clip(acc, -ACCUMULATOR_LIMIT, ACCUMULATOR_LIMIT), acc)
    q: Array = np.clip(shift_right(high_product(near << left, multiplier), shift) + zero_point, low, high)
    return q


def multiplier_and_shift(factors: Sequence[float] | Array) -> tuple[Array, Array]:
    """Write real factors > 0 as multiplier / 2^31 / 2^shift; int32 arrays.

    A factor too small to move any sum of int32 by half a step (below 2^-31) becomes 0, with shift 1; so does 0 itself. Raises
    ValueError for a factor of 4 or more.
    """
    multipliers, shifts = [], []
    for factor in np.asarray(factors, np.float64).reshape(-1).tolist():
        if not 0 <= factor < 1 << -MIN_SHIFT:
            raise ValueError(f"{factor} is no factor from 0 to {1 << -MIN_SHIFT}")
        fraction, exponent = math.frexp(factor)
        multiplier = round(fraction * (1 << 31))
        if multiplier == 1 << 31:
            # rounded up to a power of two: the next shift, but 4 itself has none
            multiplier, exponent = (1 << 30, exponent + 1) if -exponent > MIN_SHIFT else ((1 << 31) - 1, exponent)
        if multiplier == 0 or -exponent > MAX_SHIFT:
            multiplier, exponent = 0, -1
        multipliers.append(multiplier)
        shifts.append(-exponent)
    return np.array(multipliers, np.int32), np.array(shifts, np.int32)


def common_factors(factors: Sequence[float]) -> tuple[list[int], int]:
    """Write real factors as whole numbers of magnitude up to 2^20 over one power of two: factor = whole / 2^shift, 0 <= shift <= 30.

    Raises ValueError for a factor of 2^20 or more.
    """
    largest = max(map(abs, factors))
    if not largest < 1 << FACTOR_BITS:
        raise ValueError(f"{largest} is no factor below {1 << FACTOR_BITS}")
    shift = min(FACTOR_BITS - math.frexp(largest)[1], MAX_SHIFT) if largest > 0 else 1
    return [round(factor * (1 << shift)) for factor in factors], shift
