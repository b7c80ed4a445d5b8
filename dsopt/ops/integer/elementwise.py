"""q_add, q_mul, q_rescale and q_lookup: each element of the result from one element of each operand."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dsopt.ops.integer.common import TORCH_DTYPES, Array, integer_operator, narrow
from dsopt.ops.rounding import requantize, shift_right

OUTPUT = "int y_zero, int low, int high, int bits"

TABLE_STEP = 128
"""Steps of a 16-bit input from one entry of its table to the next: 513 entries."""


def q_add(
    a: Array, b: Array, a_zero: int, b_zero: int, a_factor: int, b_factor: int, shift: int, y_zero: int, low: int, high: int, bits: int
) -> Array:  # fmt: skip
    """Add broadcast integers: ((a - a_zero) a_factor + (b - b_zero) b_factor) / 2^shift, rounded once. A factor may be negative."""
    total = (a.astype(np.int64) - a_zero) * a_factor + (b.astype(np.int64) - b_zero) * b_factor
    return narrow(np.clip(shift_right(total, shift) + y_zero, low, high), bits)


def q_mul(
    a: Array, b: Array, a_zero: int, b_zero: int, multiplier: int, shift: int, y_zero: int, low: int, high: int, bits: int
) -> Array:  # fmt: skip
    """Multiply broadcast integers and requantise."""
    products = (a.astype(np.int64) - a_zero) * (b.astype(np.int64) - b_zero)
    return narrow(requantize(products, multiplier, shift, y_zero, low, high), bits)


def q_rescale(x: Array, x_zero: int, factor: int, shift: int, y_zero: int, low: int, high: int, bits: int) -> Array:
    """Write integers on another grid: (x - x_zero) factor / 2^shift, rounded once. Also what a ReLU on its own becomes."""
    scaled = shift_right((x.astype(np.int64) - x_zero) * factor, shift)
    return narrow(np.clip(scaled + y_zero, low, high), bits)


def q_lookup(x: Array, table: Array, shift: int, y_zero: int, low: int, high: int, bits: int) -> Array:
    """Apply any function of one value by its table.

    int8 x: table (256,) of results, entry x + 128; the other arguments do nothing.  int16 x: table (513,) of values times 2^shift,
    one for every `TABLE_STEP` steps from -32768 on, with straight lines between them.
    """
    if x.dtype == np.int8:
        return narrow(table.astype(np.int64)[x.astype(np.int64) + 128], bits)
    place = x.astype(np.int64) + 32768
    entry, rest = place // TABLE_STEP, place % TABLE_STEP
    start, end = table.astype(np.int64)[entry], table.astype(np.int64)[entry + 1]
    value = shift_right(start * TABLE_STEP + (end - start) * rest, shift + 7)
    return narrow(np.clip(value + y_zero, low, high), bits)


def _broadcast(a: Tensor, b: Tensor, *rest: int) -> Tensor:
    y = a.new_empty(a.shape, dtype=torch.bool) | b.new_empty(b.shape, dtype=torch.bool)  # broadcasts, varying sizes too
    return torch.empty_like(y, dtype=TORCH_DTYPES[rest[-1]])


def _like(x: Tensor, *rest: int) -> Tensor:
    return torch.empty_like(x, dtype=TORCH_DTYPES[rest[-1]])


integer_operator(
    f"q_add(Tensor a, Tensor b, int a_zero, int b_zero, int a_factor, int b_factor, int shift, {OUTPUT}) -> Tensor",
    q_add,
    _broadcast,
)
integer_operator(
    f"q_mul(Tensor a, Tensor b, int a_zero, int b_zero, int multiplier, int shift, {OUTPUT}) -> Tensor",
    q_mul,
    _broadcast,
)
integer_operator(f"q_rescale(Tensor x, int x_zero, int factor, int shift, {OUTPUT}) -> Tensor", q_rescale, _like)
integer_operator(f"q_lookup(Tensor x, Tensor table, int shift, {OUTPUT}) -> Tensor", q_lookup, _like)
