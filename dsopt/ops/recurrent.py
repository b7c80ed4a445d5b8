"""One direction of one LSTM or GRU layer whose inner values are rounded as integer code rounds them.

The formats are those of `dsopt.ops.integer.recurrent`: sums of gates in 16 bits with 12 after the point, the cell of an LSTM and
the state of a GRU in 16 bits, what goes back into the layer and out of it in 8; sigmoid and tanh are taken from the same tables,
and each product is rounded where integer code shifts it. A step more or less in a state would grow from one time to the next. Inputs
and weights are rounded by the caller, by fake_quantize or dequantize. The gradient goes straight through every rounding inside of its
range, and is that of the functions themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dsopt.ops.integer.recurrent import SIGMOID, TANH, interpolate
from dsopt.ops.library import register_recomputed

GATE_BITS = 12
"""Bits after the point of the sums of gates: their range is -8 to 8, beyond which sigmoid and tanh are flat."""

STATE_BITS = 15
"""Bits after the point of the state of a GRU, which is between -1 and 1: an update may be far smaller than a step of 8 bits."""


def _grid(x: Tensor, scale: float, zero_point: int = 0, bits: int = 16) -> Tensor:
    half = 1 << (bits - 1)
    steps, zero = x.new_tensor(scale), x.new_tensor(float(zero_point))
    rounded: Tensor = torch.ops.dsopt.fake_quantize(x, steps, zero, 0, 0, -half, half - 1, False)
    return rounded


def _gate(x: Tensor) -> Tensor:
    return _grid(x, 2.0**-GATE_BITS)


@lru_cache(maxsize=2)
def gate_values(name: str) -> Tensor:
    """Return what integer code takes "sigmoid" or "tanh" to be, at each sum of a gate from -8 to 8.

    (65536,) int16, 15 bits after the point.
    """
    table = {"sigmoid": SIGMOID, "tanh": TANH}[name]
    return torch.from_numpy(interpolate(table, np.arange(-(1 << 15), 1 << 15)).astype(np.int16))


def _of_gate(name: str, x: Tensor) -> Tensor:
    """Return sigmoid or tanh of numbers on the grid of gates, as the tables have them, with the gradient of the function."""
    place = (x.detach() * (1 << GATE_BITS)).to(torch.int64) + (1 << 15)
    real = gate_values(name).to(x.device)[place].to(x.dtype) / (1 << 15)
    if not x.requires_grad:
        return real
    smooth = torch.sigmoid(x) if name == "sigmoid" else torch.tanh(x)
    return real + (smooth - smooth.detach())


def _walk(x: Tensor, batch_first: bool, reverse: bool, step: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `step` to the input of each time, first to last or last to first, and stack what it returns as x is stacked."""
    axis = 1 if batch_first else 0
    slices = list(x.unbind(axis))
    outputs = [step(each) for each in (reversed(slices) if reverse else slices)]
    return torch.stack(outputs[::-1] if reverse else outputs, axis)


def fake_quantized_lstm(
    x: Tensor, h0: Tensor, c0: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Tensor | None, h_scale: float, h_zero: int, cell_bits: int,
    batch_first: bool, reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return (y, h, c) of an LSTM (Hochreiter and Schmidhuber 1997; gates in torch's order: input, forget, cell, output).

    x: (T, B, I), or (B, T, I) with batch_first; h0, c0: (B, H); w_ih: (4H, I); w_hh: (4H, H); bias: (4H,), both biases of torch
    added. y: (T, B, H) or (B, T, H) on the 8-bit grid of h_scale and h_zero; c is kept in 16 bits with `cell_bits` after the point.
    """
    state = [_grid(h0, h_scale, h_zero, 8), _grid(c0, 2.0**-cell_bits)]

    def step(value: Tensor) -> Tensor:
        h, c = state
        sums = _gate(_gate(F.linear(value, w_ih, bias)) + _gate(F.linear(h, w_hh)))
        gate, forget, cell, output = sums.chunk(4, -1)
        kept = _grid(_of_gate("sigmoid", forget) * c, 2.0**-cell_bits)
        c = _grid(kept + _grid(_of_gate("sigmoid", gate) * _of_gate("tanh", cell), 2.0**-cell_bits), 2.0**-cell_bits)
        h = _grid(_of_gate("sigmoid", output) * _of_gate("tanh", _gate(c)), h_scale, h_zero, 8)
        state[:] = [h, c]
        return h

    return _walk(x, batch_first, reverse, step), state[0], state[1]


def fake_quantized_gru(
    x: Tensor, h0: Tensor, w_ih: Tensor, w_hh: Tensor, bias_ih: Tensor | None, bias_hh: Tensor | None, h_scale: float, h_zero: int,
    batch_first: bool, reverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return (y, h) of a GRU (Cho et al. 2014; gates in torch's order: reset, update, new).

    x: (T, B, I), or (B, T, I) with batch_first; h0: (B, H); w_ih: (3H, I); w_hh: (3H, H); biases: (3H,). y: (T, B, H) or (B, T, H)
    on the 8-bit grid of h_scale and h_zero; h: (B, H) in 16 bits with 15 after the point.
    """
    state = [_grid(h0, 2.0**-STATE_BITS)]

    def step(value: Tensor) -> Tensor:
        (h,) = state
        from_input = _gate(F.linear(value, w_ih, bias_ih)).chunk(3, -1)
        from_state = _gate(F.linear(_grid(h, h_scale, h_zero, 8), w_hh, bias_hh)).chunk(3, -1)
        reset, update = (_of_gate("sigmoid", _gate(a + b)) for a, b in zip(from_input[:2], from_state[:2], strict=True))
        new = _of_gate("tanh", _gate(from_input[2] + reset * from_state[2]))
        h = _grid(new + update * (h - new), 2.0**-STATE_BITS)
        state[:] = [h]
        return _grid(h, h_scale, h_zero, 8)

    return _walk(x, batch_first, reverse, step), state[0]


def float_lstm(
    x: Tensor, h0: Tensor, c0: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Tensor | None, h_scale: float, h_zero: int, cell_bits: int,
    batch_first: bool, reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Do as `fake_quantized_lstm` without any rounding."""
    biases = [] if bias is None else [bias, torch.zeros_like(bias)]
    given = x.flip(1 if batch_first else 0) if reverse else x
    states = [h0[None].to(x.dtype), c0[None].to(x.dtype)]
    y, h, c = torch.lstm(given, states, [w_ih, w_hh, *biases], bool(biases), 1, 0.0, False, False, batch_first)
    return (y.flip(1 if batch_first else 0) if reverse else y), h[0], c[0]


def float_gru(
    x: Tensor, h0: Tensor, w_ih: Tensor, w_hh: Tensor, bias_ih: Tensor | None, bias_hh: Tensor | None, h_scale: float, h_zero: int,
    batch_first: bool, reverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Do as `fake_quantized_gru` without any rounding."""
    biases = [] if bias_ih is None or bias_hh is None else [bias_ih, bias_hh]
    given = x.flip(1 if batch_first else 0) if reverse else x
    y, h = torch.gru(
        given, h0[None].to(x.dtype), [w_ih, w_hh, *biases], bool(biases), 1, 0.0, False, False, batch_first
    )
    return (y.flip(1 if batch_first else 0) if reverse else y), h[0]


def _sequence(x: Tensor, h0: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1], h0.shape[-1]))


register_recomputed(
    "fake_quantized_lstm(Tensor x, Tensor h0, Tensor c0, Tensor w_ih, Tensor w_hh, Tensor? bias, float h_scale, int h_zero, "
    "int cell_bits, bool batch_first, bool reverse) -> (Tensor, Tensor, Tensor)",
    fake_quantized_lstm,
    lambda x, h0, c0, *rest: (_sequence(x, h0), torch.empty_like(h0), torch.empty_like(c0)),
)
register_recomputed(
    "fake_quantized_gru(Tensor x, Tensor h0, Tensor w_ih, Tensor w_hh, Tensor? bias_ih, Tensor? bias_hh, float h_scale, int h_zero, "
    "bool batch_first, bool reverse) -> (Tensor, Tensor)",
    fake_quantized_gru,
    lambda x, h0, *rest: (_sequence(x, h0), torch.empty_like(h0)),
)
