"""From four sums in the lanes of a vector register to four results: bias, scale, zero point, clamp, as `dsopt_requantize` has it.

`vmulh` is the upper half of sum * multiplier, `vrshl` by a negative count the shift that rounds ties upwards.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dsopt.backends.mcu.kernels.assembly import to_word
from dsopt.backends.mcu.kernels.store import Addition, Store
from dsopt.backends.mcu.kernels.stream import Array, Weights, nibbles, word_of_bytes, words
from dsopt.ops.rounding import SPARE_BITS

LANES, BYTES = 4, 16
"""Sums, and bytes, in a vector register."""


def quads(layer: Weights) -> Array:
    """Return, for each four channels, biases, multipliers, and the counts to shift left by, four bytes: (N / 4, 9) words."""
    spare = (1 << SPARE_BITS) - 1
    bias, multiplier = (words(values).reshape(-1, LANES) for values in (layer.bias, layer.scale & ~spare))
    counts = (-(layer.scale & spare)).reshape(-1, LANES).astype(np.int8)
    return np.concatenate([bias, multiplier, np.ascontiguousarray(counts).view(np.int32)], 1)


def load_quad(pointer: str) -> list[str]:
    """Return the instructions that read a record of `quads` into q0 (biases), q1 (multipliers) and q2 (counts)."""
    return [f"vldrw.u32 q0, [{pointer}], #16", f"vldrw.u32 q1, [{pointer}], #16", f"vldrb.s32 q2, [{pointer}], #4"]


def load_weights(register: str, pointer: str, place: int, bits: int, is_lower: bool, is_last: bool) -> list[str]:
    """Return the instructions that load 16 weights, `place` of the vectors that are read one behind the other at a pointer.

    Those of 4 bits lie in pairs of vectors, in the upper and the lower halves of the same bytes: the pointer moves on with the second,
    or with the first if it `is_last`, since there is no second.
    """
    if bits == 8:
        return [f"vldrw.u32 {register}, [{pointer}], #16"]
    if is_lower:
        return [
            f"vldrw.u32 {register}, [{pointer}], #16",
            f"vshl.i8 {register}, {register}, #4",
            f"vshr.s8 {register}, {register}, #4",
        ]
    address = f"[{pointer}], #16" if is_last else f"[{pointer}, #{16 * place}]"
    return [f"vldrw.u32 {register}, {address}", f"vshr.s8 {register}, {register}, #4"]


def vector_words(vectors: Array, bits: int) -> Array:
    """Return vectors of 16 weights, (..., count, several, 16), as words: of 4 bits, each two in a row share one, the last perhaps none."""
    *outer, count, several, _ = vectors.shape
    packed = word_of_bytes(vectors.reshape(*outer, count, several, 4, 4))
    if bits == 4:
        even = np.concatenate([packed, np.zeros((*outer, count % 2, several, 4), packed.dtype)], -3)
        packed = nibbles(np.moveaxis(even.reshape(*outer, -1, 2, several, 4), -3, -1))
    return packed.reshape(*outer, -1)


def splat(register: str, number: int) -> str:
    """Return the instruction that puts a number of -256..255 into each lane."""
    return f"vmov.i32 {register}, #{number}" if number >= 0 else f"vmvn.i32 {register}, #{~number}"


def clamp(values: Sequence[str], low: int, high: int, spare: tuple[str, str]) -> list[str]:
    """Return the instructions that clamp lanes before their lowest byte is stored. spare: two vectors that are overwritten."""
    if (low, high) == (-128, 127):
        return [line for value in values for line in (f"vqmovnb.s32 {value}, {value}", f"vqmovnb.s16 {value}, {value}")]
    return clamp_wide(values, low, high, spare)


def clamp_wide(values: Sequence[str], low: int, high: int, spare: tuple[str, str]) -> list[str]:
    """Return the instructions that clamp all 32 bits of the lanes."""
    lines = [splat(spare[0], low), splat(spare[1], high)]
    for value in values:
        lines += [f"vmax.s32 {value}, {value}, {spare[0]}", f"vmin.s32 {value}, {value}, {spare[1]}"]
    return lines


def scaled(values: Sequence[str], store: Store, register: str) -> list[str]:
    """Return the instructions that scale sums by what `load_quad` read, and add the zero point by way of a register."""
    lines = to_word(register, store.zero) if store.zero else []
    for value in values:
        lines += [
            f"vadd.i32 {value}, {value}, q0",
            *lifted(value, store),
            f"vmulh.s32 {value}, {value}, q1",
            f"vrshl.s32 {value}, {value}, q2",
        ]
        lines += [f"vadd.i32 {value}, {value}, {register}"] if store.zero else []
    return lines


def finished(
    values: Sequence[str], places: Sequence[str], store: Store, addition: Addition | None, free: Sequence[str]
) -> list[str]:
    """Return the instructions from sums to bytes in memory; q0 to q4 are overwritten.

    places: registers with the addresses, which move on by four bytes.  free: general registers that are overwritten; with an
    addition, the first holds the distance from the results to the residual.
    """
    if addition is None:
        lines = scaled(values, store, free[0]) + clamp(values, store.low, store.high, ("q3", "q4"))
        return lines + [f"vstrb.32 {value}, [{place}], #4" for value, place in zip(values, places, strict=True)]
    distance, factor, other, constant, place_of = free[:5]
    lines = scaled(values, store, factor) + clamp_wide(values, store.low, store.high, ("q3", "q4"))
    lines += to_word(factor, addition.factor) + to_word(other, addition.residual_factor)
    lines += to_word(constant, addition.constant)
    for value, place in zip(values, places, strict=True):
        lines += [
            f"add {place_of}, {place}, {distance}",
            f"vldrb.s32 q0, [{place_of}]",
            f"vmul.i32 {value}, {value}, {factor}",
            f"vmla.s32 {value}, q0, {other}",
            f"vadd.i32 {value}, {value}, {constant}",
            *([f"vshr.s32 {value}, {value}, #{addition.shift}"] if addition.shift else []),
        ]
    lines += clamp(values, addition.low, addition.high, ("q1", "q2"))
    return lines + [f"vstrb.32 {value}, [{place}], #4" for value, place in zip(values, places, strict=True)]


def lifted(value: str, store: Store) -> list[str]:
    """Return the instructions that shift sums to the left before they are scaled."""
    return [f"vshl.i32 {value}, {value}, #{store.lift}"] if store.lift else []


def scaled_alike(value: str, bias: str, multiplier: str, count: str, zero: str, store: Store) -> list[str]:
    """Return the instructions that scale sums of one channel. bias, count, zero: general registers."""
    lines = [f"vadd.i32 {value}, {value}, {bias}", *lifted(value, store), f"vmulh.s32 {value}, {value}, {multiplier}"]
    lines += [f"vrshl.s32 {value}, {count}"]
    return lines + ([f"vadd.i32 {value}, {value}, {zero}"] if store.zero else [])
