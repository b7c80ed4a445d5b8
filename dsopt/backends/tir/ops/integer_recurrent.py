"""q_lstm and q_gru: one kernel for a layer and direction, a loop over time inside, in the formats of `dsopt.ops.integer.recurrent`.

A step of the grid owns one sample. Gates stand in torch's order: LSTM input, forget, cell, output; GRU reset, update, new.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dsopt.backends.tir.builder import KernelBuilder
from dsopt.backends.tir.ops.integer_values import cast, centred, clamped, limited, need_integers
from dsopt.backends.tir.ops.integer_weights import StoredWeight, WeightReader
from dsopt.backends.tir.ops.recurrent import SequenceView
from dsopt.backends.tir.ops.requantize import Requantizer, shift_right
from dsopt.backends.tir.program import Buffer
from dsopt.backends.tir.registry import Context, lowering
from dsopt.backends.tir.tvm_adapter import Expr, TirBuffer, tirx
from dsopt.ops.recurrent import GATE_BITS, STATE_BITS


@dataclass(frozen=True)
class _Part:
    """What one of the two inputs of a layer, x or its own last output, is multiplied with."""

    name: str
    weight: Buffer
    bias: Buffer | None
    multiplier: Buffer
    shift: Buffer
    zero: int


@dataclass(frozen=True)
class _Layer:
    """One layer and direction of H units with `gates` gates each."""

    gates: int
    H: int
    x: SequenceView
    input: _Part
    hidden: _Part
    sigmoid: Buffer
    tanh: Buffer
    weight_bits: int
    y_multiplier: int
    y_shift: int
    reverse: bool

    @property
    def multiply_adds(self) -> int:
        """Return the products of one run."""
        return self.x.T * self.x.B * self.gates * self.H * (self.x.shape[2] + self.H)


class _Sums:
    """The weights of one input, as parameters of a kernel."""

    def __init__(self, context: Context, k: KernelBuilder, layer: _Layer, part: _Part, width: int) -> None:
        need_integers(part.bias, part.multiplier, part.shift)
        self.k, self.part, self.width, self.rows = k, part, width, layer.gates * layer.H
        stored = StoredWeight.of(part.weight, (self.rows, width), layer.weight_bits)
        self._weight = WeightReader(k, stored, f"w_{part.name}")
        self._bias = k.read(f"b_{part.name}", part.bias) if part.bias else None
        self._scale = Requantizer(context, k, part.multiplier, part.shift, False, f"{part.name}_")

    def of(self, row: Expr, read: Callable[[Expr], Expr]) -> Expr:
        """Name the scaled sum of one row over the values read(0) .. read(width - 1), limited to int16."""
        k, name = self.k, self.part.name
        total = k.local(f"{name}_total", 0 if self._bias is None else self._bias[row], "int32")
        with k.loop("i", 0, self.width) as i:
            k.store(total, total[0] + centred(read(i), self.part.zero) * self._weight.value(row, i))
        return k.let(f"{name}_part", cast(_saturated(self._scale.scaled(total[0], row)), "int32"), "int32")


class _Cell:
    """The body of a kernel: what every kind of cell needs."""

    def __init__(self, context: Context, k: KernelBuilder, layer: _Layer) -> None:
        need_integers(layer.x.buffer, layer.sigmoid, layer.tanh)
        self.k, self.layer = k, layer
        self.x = k.read("x", layer.x.buffer, layer.x.shape)
        self.input = _Sums(context, k, layer, layer.input, layer.x.shape[2])
        self.hidden = _Sums(context, k, layer, layer.hidden, layer.H)
        self.sigmoid_table, self.tanh_table = k.read("sigmoid", layer.sigmoid), k.read("tanh", layer.tanh)
        self._y_scale = Requantizer(context, k, layer.y_multiplier, layer.y_shift, False)

    def parts(self, gate: int, t: Expr, b: Expr, j: Expr, before: TirBuffer) -> tuple[Expr, Expr]:
        """Return what x and the last output add to a gate of unit j."""
        row = j + gate * self.layer.H
        from_input = self.input.of(row, lambda i: self.x[self.layer.x.at(t, b, i)])
        return from_input, self.hidden.of(row, lambda i: before[b, i])

    def gate(self, gate: int, t: Expr, b: Expr, j: Expr, before: TirBuffer) -> Expr:
        """Return the sum of both parts, limited to int16."""
        from_input, from_state = self.parts(gate, t, b, j, before)
        return _saturated(from_input + from_state)

    def sigmoid(self, name: str, value: Expr) -> Expr:
        """Name the sigmoid of a sum."""
        return self._interpolated(name, self.sigmoid_table, value)

    def tanh(self, name: str, value: Expr) -> Expr:
        """Name the hyperbolic tangent of a sum."""
        return self._interpolated(name, self.tanh_table, value)

    def _interpolated(self, name: str, table: TirBuffer, value: Expr) -> Expr:
        """Read a function of -8..8 from its 513 values, with straight lines between them."""
        k = self.k
        place = k.let("place", value + 32768, "int32")
        entry = k.let("entry", tirx.shift_right(place, 7), "int32")
        start = k.let("start", centred(table[entry], 0), "int32")
        rise = (centred(table[entry + 1], 0) - start) * tirx.bitwise_and(place, 127)
        return k.let(name, start + tirx.shift_right(rise + 64, 7), "int32")

    def product(self, a: Expr, b: Expr, shift: int) -> Expr:
        """Return a * b / 2^shift."""
        return shift_right(a * b, shift)

    def on_grid(self, value: Expr) -> Expr:
        """Name a value on the 8-bit grid of the output."""
        scaled = self._y_scale.scaled(value)
        return self.k.let("narrowed", clamped(scaled, self.layer.hidden.zero, -128, 127, "int8"), "int8")


def _saturated(value: Expr) -> Expr:
    return limited(value, -32768, 32767)


@lowering("dsopt.q_lstm.default")
def _lstm(
    context: Context, x: Buffer, h0: Buffer, c0: Buffer, w_ih: Buffer, w_hh: Buffer, bias: Buffer | None, x_multiplier: Buffer,
    x_shift: Buffer, h_multiplier: Buffer, h_shift: Buffer, sigmoid: Buffer, tanh: Buffer, x_zero: int, h_zero: int, weight_bits: int,
    cell_bits: int, y_multiplier: int, y_shift: int, batch_first: bool, reverse: bool,
) -> tuple[Buffer | None, ...]:  # fmt: skip
    need_integers(h0, c0)
    B, H = h0.shape
    source = SequenceView(x, batch_first, x.elements // (B * x.shape[2]), B)
    parts = (
        _Part("x", w_ih, bias, x_multiplier, x_shift, x_zero),
        _Part("h", w_hh, None, h_multiplier, h_shift, h_zero),
    )
    layer = _Layer(4, H, source, *parts, sigmoid, tanh, weight_bits, y_multiplier, y_shift, reverse)
    result, h_last, c_last = (context.result(n) for n in range(3))
    y = SequenceView(result, batch_first, source.T, B)
    scratch = context.temp("before", (B, H), "int8")
    with context.kernel(multiply_adds=layer.multiply_adds) as k:
        cell = _Cell(context, k, layer)
        first, first_cell = k.read("h0", h0), k.read("c0", c0)
        out, h, c = k.write("y", result, y.shape), k.write("h", h_last), k.write("c", c_last)
        before = k.scratch("before", scratch)
        with k.grid(b=B) as (b,):
            with k.loop("j", 0, H) as j:
                k.store(h, first[b, j], b, j)
                k.store(c, first_cell[b, j], b, j)
            with k.loop("step", 0, source.T) as step:
                t = k.let("t", (source.T - 1) - step) if reverse else step
                with k.loop("j", 0, H) as j:
                    k.store(before, h[b, j], b, j)
                with k.loop("j", 0, H) as j:
                    taken = cell.sigmoid("taken", cell.gate(0, t, b, j, before))
                    forgotten = cell.sigmoid("forget", cell.gate(1, t, b, j, before))
                    candidate = cell.tanh("candidate", cell.gate(2, t, b, j, before))
                    shown = cell.sigmoid("shown", cell.gate(3, t, b, j, before))
                    kept = cell.product(forgotten, centred(c[b, j], 0), STATE_BITS)
                    added = cell.product(taken, candidate, 2 * STATE_BITS - cell_bits)
                    state = k.let("cell", _saturated(kept + added), "int32")
                    k.store(c, tirx.Cast("int16", state), b, j)
                    squashed = cell.tanh("squashed", _to_gate_bits(k, state, cell_bits))
                    narrowed = cell.on_grid(shown * squashed)
                    k.store(h, narrowed, b, j)
                    k.store(out, narrowed, *y.at(t, b, j))
    return result, h_last, c_last


def _to_gate_bits(k: KernelBuilder, state: Expr, cell_bits: int) -> Expr:
    """Return the cell with as many bits after the point as the sums of gates have."""
    if cell_bits > GATE_BITS:
        return shift_right(state, cell_bits - GATE_BITS)
    return _saturated(state * (1 << (GATE_BITS - cell_bits)))


@lowering("dsopt.q_gru.default")
def _gru(
    context: Context, x: Buffer, h0: Buffer, w_ih: Buffer, w_hh: Buffer, bias_ih: Buffer | None, bias_hh: Buffer | None,
    x_multiplier: Buffer, x_shift: Buffer, h_multiplier: Buffer, h_shift: Buffer, sigmoid: Buffer, tanh: Buffer, x_zero: int,
    h_zero: int, weight_bits: int, y_multiplier: int, y_shift: int, batch_first: bool, reverse: bool,
) -> tuple[Buffer | None, ...]:  # fmt: skip
    need_integers(h0)
    B, H = h0.shape
    source = SequenceView(x, batch_first, x.elements // (B * x.shape[2]), B)
    parts = (
        _Part("x", w_ih, bias_ih, x_multiplier, x_shift, x_zero),
        _Part("h", w_hh, bias_hh, h_multiplier, h_shift, h_zero),
    )
    layer = _Layer(3, H, source, *parts, sigmoid, tanh, weight_bits, y_multiplier, y_shift, reverse)
    result, h_last = context.result(0), context.result(1)
    y = SequenceView(result, batch_first, source.T, B)
    scratch = context.temp("before", (B, H), "int8")
    with context.kernel(multiply_adds=layer.multiply_adds) as k:
        cell = _Cell(context, k, layer)
        first = k.read("h0", h0)
        out, h = k.write("y", result, y.shape), k.write("h", h_last)
        before = k.scratch("before", scratch)
        with k.grid(b=B) as (b,):
            with k.loop("j", 0, H) as j:
                k.store(h, first[b, j], b, j)
            with k.loop("step", 0, source.T) as step:
                t = k.let("t", (source.T - 1) - step) if reverse else step
                with k.loop("j", 0, H) as j:
                    k.store(before, cell.on_grid(centred(h[b, j], 0)), b, j)
                with k.loop("j", 0, H) as j:
                    reset = cell.sigmoid("reset", cell.gate(0, t, b, j, before))
                    update = cell.sigmoid("update", cell.gate(1, t, b, j, before))
                    from_input, from_state = cell.parts(2, t, b, j, before)
                    remembered = cell.product(reset, from_state, STATE_BITS)
                    new = cell.tanh("candidate", _saturated(from_input + remembered))
                    moved = cell.product(update, centred(h[b, j], 0) - new, STATE_BITS)
                    state = k.let("state", _saturated(new + moved), "int32")
                    k.store(h, tirx.Cast("int16", state), b, j)
                    k.store(out, cell.on_grid(state), *y.at(t, b, j))
    return result, h_last
