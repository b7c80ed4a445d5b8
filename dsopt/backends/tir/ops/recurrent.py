"""LSTM, GRU and plain recurrent layers: one kernel for each layer and direction, a loop over time inside, state kept in the result.

A step of the grid owns one sample. Gate order is torch's: LSTM input, forget, cell, output; GRU reset, update, new.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dsopt.backends.tir.builder import KernelBuilder
from dsopt.backends.tir.ops.activation import relu, sigmoid
from dsopt.backends.tir.program import Buffer
from dsopt.backends.tir.registry import Context, RefusedError, lowering
from dsopt.backends.tir.tvm_adapter import Expr, TirBuffer, tirx


@dataclass(frozen=True)
class SequenceView:
    """A (time, batch, features) view of a sequence, stored time first or batch first; T steps, B samples."""

    buffer: Buffer
    batch_first: bool
    T: int
    B: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the shape as stored."""
        width = self.buffer.elements // (self.T * self.B)
        return (self.B, self.T, width) if self.batch_first else (self.T, self.B, width)

    def at(self, t: Expr, b: Expr, i: Expr) -> tuple[Expr, Expr, Expr]:
        """Return the index of feature i of sample b at time t."""
        return (b, t, i) if self.batch_first else (t, b, i)


@dataclass(frozen=True)
class _Weights:
    """Weights of one layer and direction."""

    input: Buffer
    hidden: Buffer
    input_bias: Buffer | None
    hidden_bias: Buffer | None


@dataclass(frozen=True)
class _Slot:
    """Where one layer and direction keeps its state in the (layers * directions, B, H) state tensors, and its output columns."""

    number: int
    layers: int
    first_column: int
    backward: bool


class _Step:
    """The body of a recurrent kernel: reads and names that every kind of cell needs."""

    def __init__(self, k: KernelBuilder, x: SequenceView, w: _Weights, gates: int, H: int) -> None:
        self.k, self.x_view, self.H, self.gates = k, x, H, gates
        self.inputs = x.shape[2]
        self.x = k.read("x", x.buffer, x.shape)
        self.w_input = k.read("w_input", w.input, (gates * H, self.inputs))
        self.w_hidden = k.read("w_hidden", w.hidden, (gates * H, H))
        self.b_input = k.read("b_input", w.input_bias) if w.input_bias else None
        self.b_hidden = k.read("b_hidden", w.hidden_bias) if w.hidden_bias else None

    def sums(self, t: Expr, b: Expr, j: Expr, before: TirBuffer, separate: bool) -> list[TirBuffer]:
        """Return local sums of the gates of unit j; with `separate`, the hidden part of the last gate is a sum of its own."""
        k, H, gates = self.k, self.H, self.gates
        rows = [j + gate * H for gate in range(gates)]
        sums = [
            k.local(f"gate{gate}", self._bias(row, separate and gate == gates - 1), "float32")
            for gate, row in enumerate(rows)
        ]
        hidden_sums = list(sums)
        if separate:
            start = self.b_hidden[rows[-1]] if self.b_hidden is not None else 0.0
            hidden_sums[-1] = k.local("hidden", start, "float32")
        with k.loop("i", 0, self.inputs) as i:
            value = k.let("input", self.x[self.x_view.at(t, b, i)], "float32")
            for total, row in zip(sums, rows, strict=True):
                k.store(total, total[0] + value * self.w_input[row, i])
        with k.loop("i", 0, H) as i:
            value = k.let("state", before[b, i], "float32")
            for total, row in zip(hidden_sums, rows, strict=True):
                k.store(total, total[0] + value * self.w_hidden[row, i])
        return [*sums, hidden_sums[-1]] if separate else sums

    def _bias(self, row: Expr, input_only: bool) -> Expr:
        if self.b_input is None or self.b_hidden is None:
            return 0.0
        return self.b_input[row] if input_only else self.b_input[row] + self.b_hidden[row]


_Cell = Callable[[_Step, Expr, Expr, Expr, TirBuffer, "TirBuffer | None", int], Expr]


def _lstm_cell(step: _Step, t: Expr, b: Expr, j: Expr, before: TirBuffer, cells: TirBuffer | None, slot: int) -> Expr:
    assert cells is not None
    k = step.k
    gate_input, forget, cell, output = step.sums(t, b, j, before, False)
    kept = sigmoid(forget[0]) * cells[slot, b, j]
    value = k.let("cell", kept + sigmoid(gate_input[0]) * tirx.tanh(cell[0]), "float32")
    k.store(cells, value, slot, b, j)
    return sigmoid(output[0]) * tirx.tanh(value)


def _gru_cell(step: _Step, t: Expr, b: Expr, j: Expr, before: TirBuffer, cells: TirBuffer | None, slot: int) -> Expr:
    k = step.k
    reset, update, new, hidden = step.sums(t, b, j, before, True)
    candidate = k.let("candidate", tirx.tanh(new[0] + sigmoid(reset[0]) * hidden[0]), "float32")
    return candidate + sigmoid(update[0]) * (before[b, j] - candidate)


def _plain_cell(activation: Callable[[Expr], Expr]) -> _Cell:
    def cell(step: _Step, t: Expr, b: Expr, j: Expr, before: TirBuffer, cells: TirBuffer | None, slot: int) -> Expr:
        return activation(step.sums(t, b, j, before, False)[0][0])

    return cell


@dataclass(frozen=True)
class _Kind:
    gates: int
    cell: _Cell
    has_cells: bool = False


_LSTM = _Kind(4, _lstm_cell, True)
_GRU = _Kind(3, _gru_cell)
_TANH = _Kind(1, _plain_cell(tirx.tanh))
_RELU = _Kind(1, _plain_cell(relu))


def _layer(
    context: Context,
    kind: _Kind,
    x: SequenceView,
    y: SequenceView,
    w: _Weights,
    slot: _Slot,
    first: Sequence[Buffer],
    last: Sequence[Buffer],
) -> None:
    """Run one layer in one direction: first and last are the states, (hidden,) or (hidden, cells), before and after."""
    B, H, T = x.B, w.hidden.shape[1], x.T
    width = x.shape[2]
    work = T * B * kind.gates * H * (width + H)
    stored = (slot.layers, B, H)
    scratch = context.temp("before", (B, H), "float32")
    with context.kernel(str(slot.number) if slot.layers > 1 else "", multiply_adds=work) as k:
        step = _Step(k, x, w, kind.gates, H)
        starts = [k.read(name, buffer, stored) for name, buffer in zip(("h0", "c0"), first, strict=False)]
        out = k.write("y", y.buffer, y.shape)
        states = [k.write(name, buffer, stored) for name, buffer in zip(("h", "c"), last, strict=False)]
        before = k.scratch("before", scratch)
        n = slot.number
        with k.grid(b=B) as (b,):
            for start, state in zip(starts, states, strict=True):
                with k.loop("j", 0, H) as j:
                    k.store(state, start[n, b, j], n, b, j)
            with k.loop("step", 0, T) as index:
                t = k.let("t", (T - 1) - index) if slot.backward else index
                with k.loop("j", 0, H) as j:
                    k.store(before, states[0][n, b, j], b, j)
                with k.loop("j", 0, H) as j:
                    value = kind.cell(step, t, b, j, before, states[1] if kind.has_cells else None, n)
                    hidden = k.let("hidden_value", value, "float32")
                    k.store(states[0], hidden, n, b, j)
                    k.store(out, hidden, *y.at(t, b, j + slot.first_column))


def _run(
    context: Context, kind: _Kind, x: Buffer, first: Sequence[Buffer], params: Sequence[Buffer], has_biases: bool, layers: int,
    bidirectional: bool, batch_first: bool,
) -> tuple[Buffer | None, ...]:  # fmt: skip
    directions = 2 if bidirectional else 1
    each = 4 if has_biases else 2
    if len(params) != layers * directions * each:
        raise RefusedError("a recurrent layer with a projection", "use proj_size=0 and a Linear layer after it")
    H = params[1].shape[1]
    batched = len(x.shape) == 3
    T, B = (x.shape[0], 1) if not batched else (x.shape[1], x.shape[0]) if batch_first else (x.shape[0], x.shape[1])
    first_form = batch_first and batched
    result = context.result(0)
    last = [context.result(1 + n) for n in range(len(first))]
    source = SequenceView(x, first_form, T, B)
    for layer in range(layers):
        final = layer == layers - 1
        shape = (B, T, directions * H) if first_form else (T, B, directions * H)
        target = result if final else context.temp(f"layer{layer}", shape, "float32")
        y = SequenceView(target, first_form, T, B)
        for direction in range(directions):
            number = layer * directions + direction
            own = params[number * each : (number + 1) * each]
            weights = _Weights(own[0], own[1], own[2] if has_biases else None, own[3] if has_biases else None)
            slot = _Slot(number, layers * directions, direction * H, direction == 1)
            _layer(context, kind, source, y, weights, slot, first, last)
        source = y
    return (result, *last)


@lowering("aten.lstm.input")
def _lstm(
    context: Context, x: Buffer, first: list[Buffer], params: list[Buffer], has_biases: bool, layers: int, dropout: float,
    train: bool, bidirectional: bool, batch_first: bool,
) -> tuple[Buffer | None, ...]:  # fmt: skip
    return _run(context, _LSTM, x, first, params, has_biases, layers, bidirectional, batch_first)


def _register(name: str, kind: _Kind) -> None:
    @lowering(f"aten.{name}.input")
    def layer(
        context: Context, x: Buffer, first: Buffer, params: list[Buffer], has_biases: bool, layers: int, dropout: float, train: bool,
        bidirectional: bool, batch_first: bool,
    ) -> tuple[Buffer | None, ...]:  # fmt: skip
        return _run(context, kind, x, [first], params, has_biases, layers, bidirectional, batch_first)


_register("gru", _GRU)
_register("rnn_tanh", _TANH)
_register("rnn_relu", _RELU)


def _cell(
    context: Context, kind: _Kind, x: Buffer, first: Sequence[Buffer], weights: _Weights
) -> tuple[Buffer | None, ...]:
    """One step: the new hidden state is the output."""
    B = x.shape[0] if len(x.shape) == 2 else 1
    last = [context.result(n) for n in range(len(first))]
    output = context.temp("output", last[0].shape, "float32")
    _layer(
        context,
        kind,
        SequenceView(x, False, 1, B),
        SequenceView(output, False, 1, B),
        weights,
        _Slot(0, 1, 0, False),
        first,
        last,
    )
    return tuple(last)


@lowering("aten.lstm_cell.default")
def _lstm_one(
    context: Context, x: Buffer, first: list[Buffer], w_input: Buffer, w_hidden: Buffer, b_input: Buffer | None, b_hidden: Buffer | None
) -> tuple[Buffer | None, ...]:  # fmt: skip
    return _cell(context, _LSTM, x, first, _Weights(w_input, w_hidden, b_input, b_hidden))


def _register_cell(name: str, kind: _Kind) -> None:
    @lowering(f"aten.{name}.default")
    def one(
        context: Context,
        x: Buffer,
        first: Buffer,
        w_input: Buffer,
        w_hidden: Buffer,
        b_input: Buffer | None,
        b_hidden: Buffer | None,
    ) -> Buffer | None:
        return _cell(context, kind, x, [first], _Weights(w_input, w_hidden, b_input, b_hidden))[0]


_register_cell("gru_cell", _GRU)
_register_cell("rnn_tanh_cell", _TANH)
_register_cell("rnn_relu_cell", _RELU)
