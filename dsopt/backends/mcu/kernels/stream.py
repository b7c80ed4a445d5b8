"""The numbers of a layer in the order in which a micro-kernel reads them, and whether they have the form that it takes.

A scale is one word: the multiplier, whose last five bits are zero (`dsopt.ops.rounding`), and in their place the shift less 32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from dsopt.backends.tir.program import Buffer
from dsopt.backends.tir.registry import Context, UnsuitedError
from dsopt.ops.integer.common import unpack_nibbles
from dsopt.ops.rounding import MULTIPLIER_BITS, SPARE_BITS

Array = npt.NDArray[Any]

_LIFT = 4
_LEAST_SHIFT = 33


@dataclass(frozen=True)
class Weights:
    """A layer with integer weights. values: (N, ...) int64; bias: (N,) with the zero point of the input folded in; scale: (N,) packed.

    bits: of a weight in flash, 8 or 4.  lift: bits by which sums are shifted to the left before they are scaled, so that what follows
    is a shift to the right by at least one bit.  result_bits: of what a sum becomes.
    """

    values: Array
    bias: Array
    scale: Array
    bits: int = 8
    lift: int = 0
    result_bits: int = 8

    def sixteenfold(self) -> Weights:
        """Return the layer for sums that are 16 times as large, because nibbles are taken where they are: in the upper half of a byte.

        Raises UnsuitedError if those need more than 32 bits, or their shift is too large.
        """
        if int(_largest_sums(self.values, self.bias).max()) >= 1 << 27:
            raise UnsuitedError("16 times its sums need more than 32 bits")
        more = _LIFT - self.lift
        if int((self.scale & 31).max()) + more > most_shift(self.result_bits) - 32:
            raise UnsuitedError("its requantisation shifts by too many bits for weights of 4 bits")
        return replace(self, bias=self.bias * 16, scale=self.scale + more, lift=0)


def read_weights(
    context: Context, weight: Buffer, shape: list[int], bits: int, factors: Buffer | None, bias: Buffer | None,
    multiplier: Buffer, shift: Buffer, x_zero: int, wide: bool, result_bits: int = 8,
) -> Weights:  # fmt: skip
    """Return the numbers of a convolution or linear layer. Raises UnsuitedError for what no micro-kernel takes."""
    if wide:
        raise UnsuitedError("its sums need int64")
    if factors is not None:
        raise UnsuitedError("its weights have a factor for each group of inputs")
    stored, multipliers, shifts = map(context.constant, (weight, multiplier, shift))
    biases = context.constant(bias) if bias is not None else np.zeros(shape[0], np.int32)
    if stored is None or multipliers is None or shifts is None or biases is None:
        raise UnsuitedError("its weights are not known when compiling")
    values = (unpack_nibbles(stored, shape) if bits == 4 else stored).astype(np.int64).reshape(shape)
    folded = biases.astype(np.int64) - x_zero * values.reshape(shape[0], -1).sum(1)
    if int(_largest_sums(values, folded).max()) >= 1 << 31:
        raise UnsuitedError("its sums need more than 32 bits once the zero point is folded into the bias")
    lift = lift_of(multipliers, shifts, _largest_sums(values, folded))
    return Weights(values, folded, packed_scale(multipliers, shifts + lift, result_bits), bits, lift, result_bits)


def lift_of(multipliers: Array, shifts: Array, largest: Array) -> int:
    """Return by how many bits sums have to be shifted to the left before they are scaled. largest: what each sum can be.

    Raises UnsuitedError if sums that have to be are too large.
    """
    if not bool((shifts[multipliers != 0] < _LEAST_SHIFT).any()):
        return 0
    if int(largest.max()) >= 1 << (31 - _LIFT):
        raise UnsuitedError("its scales are large, and its sums need more than 27 bits")
    return _LIFT


def _largest_sums(values: Array, bias: Array) -> Array:
    """Return the largest magnitude that each sum can have."""
    most: Array = np.abs(bias) + 128 * np.abs(values.reshape(len(values), -1)).sum(1)
    return most


def most_shift(result_bits: int) -> int:
    """Return the most bits of a shift: beyond, the zero point of a result, as it is before the shift, would not fit 32 bits."""
    return 32 + 30 - result_bits


def packed_scale(multipliers: Array, shifts: Array, result_bits: int = 8) -> Array:
    """Return multiplier | shift - 32, as int64. Raises UnsuitedError for a shift or multiplier that has no such form."""
    multipliers, shifts = multipliers.astype(np.int64), shifts.astype(np.int64)
    shifts = np.where(multipliers == 0, _LEAST_SHIFT, shifts)
    if int(shifts.min()) < _LEAST_SHIFT or int(shifts.max()) > most_shift(result_bits):
        raise UnsuitedError(f"its requantisation shifts by {int(shifts.min())} to {int(shifts.max())} bits")
    spare = (1 << SPARE_BITS) - 1
    if int(multipliers.min()) < 0 or int(multipliers.max()) >> MULTIPLIER_BITS or bool((multipliers & spare).any()):
        raise UnsuitedError("its multipliers have all of 31 bits")
    packed: Array = multipliers | (shifts - 32)
    return packed


def words(values: Array) -> Array:
    """Return int64 values as the int32 with the same 32 bits."""
    return values.astype(np.int64).astype(np.uint64).astype(np.uint32).view(np.int32)


def nibbles(packed: Array) -> Array:
    """Pack pairs of words, the last dim, whose bytes hold values of 4 bits: the first word in the upper halves of the bytes."""
    first, second = ((packed[..., number].astype(np.int64) & 0x0F0F0F0F) for number in (0, 1))
    return words(first << 4 | second)


def word_of_bytes(quads: Array) -> Array:
    """Pack the last dim, four int8 values, into int32 words, the first value in the lowest byte."""
    unsigned = quads.astype(np.int64) & 255
    return words(unsigned[..., 0] | unsigned[..., 1] << 8 | unsigned[..., 2] << 16 | unsigned[..., 3] << 24)
