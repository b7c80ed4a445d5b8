"""q_lstm and q_gru: one direction of one layer, in the formats of `dsopt.ops.recurrent`.

Sums of gates are int16 with 12 bits after the point; sigmoid and tanh go from them to int16 with 15, by tables of 513 entries with
straight lines between; products of two such are shifted right by 15.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from dsopt.ops.integer.common import Array, integer_operator, narrow, stored_weight
from dsopt.ops.rounding import ACCUMULATOR_LIMIT, requantize, shift_right

_LOW, _HIGH = -32768, 32767


def gate_table(function: Callable[[Array], Array]) -> Array:
    """Return the (513,) int16 table of a function of -8..8 to -1..1."""
    points = (np.arange(513) - 256) / 32.0
    table: Array = np.clip(np.rint(function(points) * 32768), _LOW, _HIGH).astype(np.int16)
    return table


SIGMOID = gate_table(lambda x: 1 / (1 + np.exp(-x)))
TANH = gate_table(np.tanh)


def interpolate(table: Array, x: Array) -> Array:
    """Return the function of a table at int16 values."""
    place = x + 32768
    entry, rest = place >> 7, place & 127
    start = table.astype(np.int64)[entry]
    value: Array = start + (((table.astype(np.int64)[entry + 1] - start) * rest + 64) >> 7)
    return value


def _saturate(values: Array) -> Array:
    return np.clip(values, _LOW, _HIGH)


def _sums(x: Array, zero: int, weight: Array, bias: Array | None, multiplier: Array, shift: Array) -> Array:
    acc = (x.astype(np.int64) - zero) @ weight.astype(np.int64).T + (0 if bias is None else bias.astype(np.int64))
    assert acc.size == 0 or int(np.abs(acc).max()) < ACCUMULATOR_LIMIT, "a sum is larger than lower-integer proved"
    return requantize(acc, multiplier, shift, 0, _LOW, _HIGH)


def _unpacked(x: Array, h0: Array, gates: int, w_ih: Array, w_hh: Array, bits: int) -> tuple[Array, Array]:
    rows = gates * h0.shape[-1]
    return (
        stored_weight(w_ih, (rows, x.shape[-1]), bits, None, 0),
        stored_weight(w_hh, (rows, h0.shape[-1]), bits, None, 0),
    )


def _walk(x: Array, batch_first: bool, reverse: bool, step: Callable[[Array], Array]) -> Array:
    in_time = np.moveaxis(x, 1, 0) if batch_first else x
    outputs = [step(each) for each in (in_time[::-1] if reverse else in_time)]
    stacked = np.stack(outputs[::-1] if reverse else outputs)
    return np.moveaxis(stacked, 0, 1) if batch_first else stacked


def q_lstm(
    x: Array, h0: Array, c0: Array, w_ih: Array, w_hh: Array, bias: Array | None, x_multiplier: Array, x_shift: Array,
    h_multiplier: Array, h_shift: Array, sigmoid: Array, tanh: Array, x_zero: int, h_zero: int, weight_bits: int, cell_bits: int,
    y_multiplier: int, y_shift: int, batch_first: bool, reverse: bool,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Return (y int8, h int8, c int16) of an LSTM.

    x: (T, B, I), or (B, T, I) with batch_first, int8; h0: (B, H) int8; c0: (B, H) int16 with `cell_bits` after the point; w_ih:
    (4H, I), w_hh: (4H, H), int8 or packed; bias and all multipliers: (4H,) int32.  y_multiplier, y_shift: from 30 bits after the
    point to the grid of h.
    """
    state = [h0.astype(np.int64), c0.astype(np.int64)]
    w_ih, w_hh = _unpacked(x, h0, 4, w_ih, w_hh, weight_bits)

    def step(value: Array) -> Array:
        h, c = state
        sums = _saturate(
            _sums(value, x_zero, w_ih, bias, x_multiplier, x_shift)
            + _sums(h, h_zero, w_hh, None, h_multiplier, h_shift)
        )
        gate, forget, cell, output = np.split(sums, 4, -1)
        kept = shift_right(interpolate(sigmoid, forget) * c, 15)
        added = shift_right(interpolate(sigmoid, gate) * interpolate(tanh, cell), 30 - cell_bits)
        c = _saturate(kept + added)
        squashed = interpolate(
            tanh, _saturate(c << (12 - cell_bits) if cell_bits <= 12 else shift_right(c, cell_bits - 12))
        )
        h = requantize(interpolate(sigmoid, output) * squashed, y_multiplier, y_shift, h_zero, -128, 127)
        state[:] = [h, c]
        return h

    y = _walk(x, batch_first, reverse, step)
    return narrow(y, 8), narrow(state[0], 8), narrow(state[1], 16)


def q_gru(
    x: Array, h0: Array, w_ih: Array, w_hh: Array, bias_ih: Array | None, bias_hh: Array | None, x_multiplier: Array, x_shift: Array,
    h_multiplier: Array, h_shift: Array, sigmoid: Array, tanh: Array, x_zero: int, h_zero: int, weight_bits: int,
    y_multiplier: int, y_shift: int, batch_first: bool, reverse: bool,
) -> tuple[Array, Array]:  # fmt: skip
    """Return (y int8, h int16 with 15 bits after the point) of a GRU; arguments as those of `q_lstm`, with 3H in the place of 4H.

    y_multiplier, y_shift: from 15 bits after the point to the grid of y, on which the state also goes back into the layer.
    """
    state = [h0.astype(np.int64)]
    w_ih, w_hh = _unpacked(x, h0, 3, w_ih, w_hh, weight_bits)

    def narrowed(h: Array) -> Array:
        return requantize(h, y_multiplier, y_shift, h_zero, -128, 127)

    def step(value: Array) -> Array:
        (h,) = state
        from_input = np.split(_sums(value, x_zero, w_ih, bias_ih, x_multiplier, x_shift), 3, -1)
        from_state = np.split(_sums(narrowed(h), h_zero, w_hh, bias_hh, h_multiplier, h_shift), 3, -1)
        reset, update = (
            interpolate(sigmoid, _saturate(a + b)) for a, b in zip(from_input[:2], from_state[:2], strict=True)
        )
        new = interpolate(tanh, _saturate(from_input[2] + shift_right(reset * from_state[2], 15)))
        h = _saturate(new + shift_right(update * (h - new), 15))
        state[:] = [h]
        return narrowed(h)

    y = _walk(x, batch_first, reverse, step)
    return narrow(y, 8), narrow(state[0], 16)


def _sequence(x: Tensor, h0: Tensor) -> Tensor:
    import torch

    return x.new_empty((x.shape[0], x.shape[1], h0.shape[-1]), dtype=torch.int8)


_PARAMS = (
    "Tensor x_multiplier, Tensor x_shift, Tensor h_multiplier, Tensor h_shift, Tensor sigmoid, Tensor tanh, int x_zero, int h_zero, "
    "int weight_bits"
)

integer_operator(
    f"q_lstm(Tensor x, Tensor h0, Tensor c0, Tensor w_ih, Tensor w_hh, Tensor? bias, {_PARAMS}, int cell_bits, int y_multiplier, "
    "int y_shift, bool batch_first, bool reverse) -> (Tensor, Tensor, Tensor)",
    q_lstm,
    lambda x, h0, c0, *rest: (_sequence(x, h0), h0.new_empty(h0.shape), c0.new_empty(c0.shape)),
)
integer_operator(
    f"q_gru(Tensor x, Tensor h0, Tensor w_ih, Tensor w_hh, Tensor? bias_ih, Tensor? bias_hh, {_PARAMS}, int y_multiplier, int y_shift, "
    "bool batch_first, bool reverse) -> (Tensor, Tensor)",
    q_gru,
    lambda x, h0, *rest: (_sequence(x, h0), h0.new_empty(h0.shape)),
)
