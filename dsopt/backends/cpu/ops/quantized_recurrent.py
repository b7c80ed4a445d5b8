"""LSTM and GRU whose inner values are rounded: a Scan over time, with the roundings of `dsopt.ops.recurrent` in its body.

The product with the input is computed for the whole sequence before the Scan. States are floats on their grids. Sigmoid and tanh are
looked up in tables of what they are in integer code, because a difference would grow from one time to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import fx

from dsopt.backends.cpu.builder import Body, Value
from dsopt.backends.cpu.emitter import Emitter
from dsopt.backends.cpu.integers import is_inside, stored_integers, write, write_folded
from dsopt.backends.cpu.ops.quantization import real, round_trip, rounded
from dsopt.backends.cpu.registry import converter
from dsopt.ops.recurrent import GATE_BITS, STATE_BITS, gate_values

Step = Callable[[Value, Sequence[Value]], tuple[Value, Sequence[Value]]]
"""(sums from the input, states) -> (output, next states), written into the body."""


@converter("dsopt.fake_quantized_lstm.default")
def convert_lstm(
    cx: Emitter, x: fx.Node, h0: fx.Node, c0: fx.Node, w_ih: fx.Node, w_hh: fx.Node, bias: fx.Node | None, h_scale: float, h_zero: int,
    cell_bits: int, batch_first: bool, reverse: bool,
) -> tuple[Value, ...]:  # fmt: skip
    """Write one direction of one layer: the outputs, and the last hidden and cell state (B, H)."""
    hidden = cx.fixed(cx.shape(w_hh)[1], "the hidden size")
    sums, recurrence = _from_input(cx, x, w_ih, bias, batch_first), _turned(cx, w_hh, True)

    def to_hidden(value: Value) -> Value:
        return round_trip(cx, value, h_scale, h_zero, -128, 127)

    def to_cell(value: Value) -> Value:
        return _grid16(cx, value, cell_bits)

    def step(from_input: Value, states: Sequence[Value]) -> tuple[Value, Sequence[Value]]:
        h, c = states
        total = cx.op("Add", from_input, _gate(cx, cx.op("MatMul", h, recurrence)))
        gate, forget, cell, output = _split(cx, total, hidden, 4)
        kept = to_cell(cx.op("Mul", _of_gate(cx, "sigmoid", forget), c))
        added = to_cell(cx.op("Mul", _of_gate(cx, "sigmoid", gate), _of_gate(cx, "tanh", cell)))
        c = to_cell(cx.op("Add", kept, added))
        h = to_hidden(cx.op("Mul", _of_gate(cx, "sigmoid", output), _of_gate(cx, "tanh", c)))
        return h, [h, c]

    return _scan(cx, sums, [to_hidden(cx.value(h0)), to_cell(cx.value(c0))], step, batch_first, reverse)


@converter("dsopt.fake_quantized_gru.default")
def convert_gru(
    cx: Emitter, x: fx.Node, h0: fx.Node, w_ih: fx.Node, w_hh: fx.Node, bias_ih: fx.Node | None, bias_hh: fx.Node | None, h_scale: float,
    h_zero: int, batch_first: bool, reverse: bool,
) -> tuple[Value, ...]:  # fmt: skip
    """Write one direction of one layer: the outputs, and the last state (B, H)."""
    hidden = cx.fixed(cx.shape(w_hh)[1], "the hidden size")
    sums, recurrence = _from_input(cx, x, w_ih, bias_ih, batch_first), _turned(cx, w_hh, True)
    bias = cx.optional(bias_hh)

    def to_output(value: Value) -> Value:
        return round_trip(cx, value, h_scale, h_zero, -128, 127)

    def step(from_input: Value, states: Sequence[Value]) -> tuple[Value, Sequence[Value]]:
        (h,) = states
        product = cx.op("MatMul", to_output(h), recurrence)
        from_state = _gate(cx, product if bias is None else cx.op("Add", product, bias))
        ours, others = _split(cx, from_input, hidden, 3), _split(cx, from_state, hidden, 3)
        reset, update = (_of_gate(cx, "sigmoid", cx.op("Add", a, b)) for a, b in zip(ours[:2], others[:2], strict=True))
        new = _of_gate(cx, "tanh", cx.op("Add", ours[2], cx.op("Mul", reset, others[2])))
        h = _grid16(cx, cx.op("Add", new, cx.op("Mul", update, cx.op("Sub", h, new))), STATE_BITS)
        return to_output(h), [h]

    return _scan(cx, sums, [_grid16(cx, cx.value(h0), STATE_BITS)], step, batch_first, reverse)


def _scan(
    cx: Emitter, sums: Value, states: Sequence[Value], step: Step, batch_first: bool, reverse: bool
) -> tuple[Value, ...]:
    """Append a Scan over (T, B, gates H). Returns the outputs, stacked as the layer's input is, and the last states."""
    count, direction = len(states), [1] if reverse else None
    with cx.body() as nodes:
        inside = [Value(cx.unique(f"{cx.scope}/state"), torch.float32) for _ in states]
        now = Value(cx.unique(f"{cx.scope}/now"), torch.float32)
        output, after = step(now, inside)
        # An output of the body is made by a node in it, and is no other output.
        ends = tuple(cx.op("Identity", each) for each in (*after, output))
    body = Body(nodes, (*inside, now), ends)
    *last, y = cx.ops(
        "Scan", *states, sums, dtypes=[torch.float32] * (count + 1), body=body, num_scan_inputs=1,
        scan_input_directions=direction, scan_output_directions=direction,
    )  # fmt: skip
    return (cx.transpose(y, [1, 0, 2]) if batch_first else y), *last


def _from_input(cx: Emitter, x: fx.Node, weight: fx.Node, bias: fx.Node | None, batch_first: bool) -> Value:
    """Return the rounded product of weight and input, with the bias, for all times: (T, B, gates H)."""
    value = cx.transpose(cx.value(x), [1, 0, 2]) if batch_first else cx.value(x)
    product = cx.op("MatMul", value, _turned(cx, weight, is_inside(cx, x)))
    return _gate(cx, product if bias is None else cx.op("Add", product, cx.value(bias)))


def _turned(cx: Emitter, weight: fx.Node, is_taken: bool) -> Value:
    """Return a weight (N, K) as (K, N), still integers in the file. is_taken: what it is multiplied with is on a grid of 8 bits."""
    stored = stored_integers(cx, weight)
    if stored is None:
        return cx.transpose(cx.value(weight), [1, 0])
    if not is_taken or stored.group or (stored.scale.dim() and stored.axis != 0) or len(weight.users) > 1:
        return cx.transpose(write_folded(cx, stored), [1, 0])
    return write(cx, stored, is_turned=True, is_widened=True)


def _gate(cx: Emitter, value: Value) -> Value:
    return _grid16(cx, value, GATE_BITS)


def _of_gate(cx: Emitter, name: str, value: Value) -> Value:
    """Return sigmoid or tanh of a value that is rounded to the grid of gates."""
    half = 1 << 15
    place = rounded(cx, value, 2.0**-GATE_BITS, 0, -half, half - 1, torch.int16)
    # Gather counts negative places from the end
    table = cx.derive(f"{name}.values", gate_values(name).roll(half))
    found = cx.op("Gather", table, cx.cast(place, torch.int32), dtype=torch.int16)
    return real(cx, found, torch.tensor(2.0**-15), torch.tensor(0))


def _grid16(cx: Emitter, value: Value, fraction_bits: int) -> Value:
    return round_trip(cx, value, 2.0**-fraction_bits, 0, -(1 << 15), (1 << 15) - 1)


def _split(cx: Emitter, gates: Value, hidden: int, count: int) -> tuple[Value, ...]:
    return cx.ops("Split", gates, cx.vector([hidden] * count), dtypes=[None] * count, axis=-1)
