"""The numbers of a layer in the order in which a micro-kernel reads them, and whether they have the form that it takes.

A scale is one word: the multiplier, whose last five bits are zero (`dsopt.ops.rounding`), and in their place the shift less 32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dsopt.backends.tir.program import Buffer
from dsopt.backends.tir.registry import Context, UnsuitedError
from dsopt.ops.rounding import MULTIPLIER_BITS, SPARE_BITS

Array = npt.NDArray[Any]

_LEAST_SHIFT, _MOST_SHIFT = 33, 32 + 22
"""Beyond the most, a zero point of 8 bits before the shift would not fit 32 bits."""


@dataclass(frozen=True)
class Weights:
    """A layer with int8 weights. values: (N, ...) int64; bias: (N,) with the zero point of the input folded in; scale: (N,) packed."""

    values: Array
    bias: Array
    scale: Array


def read_weights(
    context: Context, weight: Buffer, shape: list[int], bits: int, factors: Buffer | None, bias: Buffer | None,
    multiplier: Buffer, shift: Buffer, x_zero: int, wide: bool,
) -> Weights:  # fmt: skip
    """Return the numbers of a convolution or linear layer. Raises UnsuitedError for what no micro-kernel takes."""
    if wide:
        raise UnsuitedError("its sums need int64")
    if bits != 8 or factors is not None:
        raise UnsuitedError("its weights have 4 bits")
    stored, multipliers, shifts = map(context.constant, (weight, multiplier, shift))
    biases = context.constant(bias) if bias is not None else np.zeros(shape[0], np.int32)
    if stored is None or multipliers is None or shifts is None or biases is None:
        raise UnsuitedError("its weights are not known when compiling")
    values = stored.astype(np.int64).reshape(shape)
    folded = biases.astype(np.int64) - x_zero * values.reshape(shape[0], -1).sum(1)
    most = np.abs(folded) + 128 * np.abs(values.reshape(shape[0], -1)).sum(1)
    if int(most.max()) >= 1 << 31:
        raise UnsuitedError("its sums need more than 32 bits once the zero point is folded into the bias")
    return Weights(values, folded, packed_scale(multipliers, shifts))


def packed_scale(multipliers: Array, shifts: Array) -> Array:
    """Return multiplier | shift - 32, as int64. Raises UnsuitedError for a shift or multiplier that has no such form."""
    multipliers, shifts = multipliers.astype(np.int64), shifts.astype(np.int64)
    shifts = np.where(multipliers == 0, _LEAST_SHIFT, shifts)
    if int(shifts.min()) < _LEAST_SHIFT or int(shifts.max()) > _MOST_SHIFT:
        raise UnsuitedError(f"its requantisation shifts by {int(shifts.min())} to {int(shifts.max())} bits")
    spare = (1 << SPARE_BITS) - 1
    if int(multipliers.min()) < 0 or int(multipliers.max()) >> MULTIPLIER_BITS or bool((multipliers & spare).any()):
        raise UnsuitedError("its multipliers have all of 31 bits")
    packed: Array = multipliers | (shifts - 32)
    return packed


def words(values: Array) -> Array:
    """Return int64 values as the int32 with the same 32 bits."""
    return values.astype(np.int64).astype(np.uint64).astype(np.uint32).view(np.int32)


def word_of_bytes(quads: Array) -> Array:
    """Pack the last dim, four int8 values, into int32 words, the first value in the lowest byte."""
    unsigned = quads.astype(np.int64) & 255
    return words(unsigned[..., 0] | unsigned[..., 1] << 8 | unsigned[..., 2] << 16 | unsigned[..., 3] << 24)
