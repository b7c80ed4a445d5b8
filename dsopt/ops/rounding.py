"""How real numbers become integers: the one place where that is decided. All code, generated or not, gives these bits.

An integer q stands for the real number scale * (q - zero_point).

    quantize     q = clamp(rint(x / scale) + zero_point, low, high)     float32; ties to even, as ONNX's QuantizeLinear
    dequantize   x = float32(q - zero_point) * scale                    float32
    requantize   q = clamp(floor((acc * m + 2^(s-1)) / 2^s) + zero_point, low, high)      once, ties upwards

`requantize` multiplies an exact sum by the real number m / 2^s. Sums that are kept in int32 take an m of 31 bits, those that need
int64 one of 24 bits, so that the product fits int64 in both cases. The last five of the 31 bits are zero: 26 are more than a
float32 has, and generated code keeps the shift in their place, which saves four bytes of flash a channel. The sum that a kernel
may reach is bounded from its actual weights when it is lowered: below `ACCUMULATOR_LIMIT` it is kept in int32, below `WIDE_LIMIT`
in int64.

gemmlowp and TensorFlow Lite round twice, once after the product and once after the shift (Jacob et al. 2018, section 2.2). What
lies between a half and a half and 2^-s of a step then goes up: one result in 300 of the layers measured differed from that of a
float that is rounded once, as ONNX's QuantizeLinear and the simulation in training do. Rounding once costs less, too: for s > 32
a Cortex-M4 needs two instructions, smmla with 2^(s-33) and a shift of the high word.

Sums of two rescaled tensors (`add`) and plain rescaling use whole-numbered factors over one shift, `common_factors`, and are
rounded once, by the same rule (`shift_right`).

The functions take and give NumPy int64 arrays, in which none of these operations overflows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

ACCUMULATOR_LIMIT = 1 << 31
"""Sums of magnitude below this are kept in int32."""

WIDE_LIMIT = 1 << 38
"""Sums of magnitude below this are kept in int64: the product with a multiplier must fit."""

MULTIPLIER_BITS, WIDE_MULTIPLIER_BITS = 31, 24
"""Bits of the multipliers of sums in int32 and in int64."""

SPARE_BITS = 5
"""The last bits of a multiplier of 31 bits, which are zero."""

MIN_SHIFT, MAX_SHIFT = 4, 62
"""The shifts that `requantize` takes."""

FACTOR_BITS = 20
"""Whole-numbered factors are at most 2 to this power, so that 255 times two of them stay below 2^30."""

_MAX_FACTOR_SHIFT = 30

_LARGEST_FACTOR = 1 << FACTOR_BITS


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
    """Return h / 2^shift, ties upwards; h itself where shift is 0."""
    by = np.asarray(shift, np.int64)
    result: Array = (h + ((np.int64(1) << by) >> 1)) >> by
    return result


def requantize(acc: Array, multiplier: int | Array, shift: int | Array, zero_point: int, low: int, high: int) -> Array:
    """Return clamp(acc * multiplier / 2^shift + zero_point, low, high), rounded once."""
    product = np.asarray(acc, np.int64) * np.asarray(multiplier, np.int64)
    q: Array = np.clip(shift_right(product, shift) + zero_point, low, high)
    return q


def multiplier_and_shift(factors: Sequence[float] | Array, bits: int = MULTIPLIER_BITS) -> tuple[Array, Array]:
    """Write real factors >= 0 as multiplier / 2^shift, the multiplier being `bits` wide; int32 arrays.

    Of 31 bits the last `SPARE_BITS` are zero.

    A factor too small to move any sum by half a step (below 2^-32, or 2^-39 with 24 bits) becomes 0; so does 0 itself. Raises
    ValueError for a factor of 2^20 or more.
    """
    multipliers, shifts = [], []
    for factor in np.asarray(factors, np.float64).reshape(-1).tolist():
        if not 0 <= factor < _LARGEST_FACTOR:
            raise ValueError(f"{factor} is no factor from 0 to {_LARGEST_FACTOR}")
        fraction, exponent = math.frexp(factor)
        spare = SPARE_BITS if bits == MULTIPLIER_BITS else 0
        multiplier, shift = round(fraction * (1 << (bits - spare))) << spare, bits - exponent
        if multiplier == 1 << bits:  # rounded up to a power of two
            multiplier, shift = (
                (1 << (bits - 1), shift - 1) if 2 * factor < _LARGEST_FACTOR else ((1 << bits) - (1 << spare), shift)
            )
        if multiplier == 0 or shift > MAX_SHIFT:
            multiplier, shift = 0, MULTIPLIER_BITS
        multipliers.append(multiplier)
        shifts.append(shift)
    return np.array(multipliers, np.int32), np.array(shifts, np.int32)


def common_factors(factors: Sequence[float]) -> tuple[list[int], int]:
    """Write real factors as whole numbers of magnitude up to 2^20 over one power of two: factor = whole / 2^shift, 0 <= shift <= 30.

    Raises ValueError for a factor of 2^20 or more.
    """
    largest = max(map(abs, factors))
    if not largest < _LARGEST_FACTOR:
        raise ValueError(f"{largest} is no factor below {_LARGEST_FACTOR}")
    shift = min(FACTOR_BITS - math.frexp(largest)[1], _MAX_FACTOR_SHIFT) if largest > 0 else 1
    return [round(factor * (1 << shift)) for factor in factors], shift
