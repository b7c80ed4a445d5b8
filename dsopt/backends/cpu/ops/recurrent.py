"""Recurrent layers: LSTM, GRU and RNN over a sequence, and their cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from dsopt.backends.cpu.builder import Value
from dsopt.backends.cpu.emitter import Emitter
from dsopt.backends.cpu.registry import RefusalError, converter, operator_key

_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}
"""torch's gates in ONNX's order: i f g o -> i o f c; r z n -> z r h."""


@converter("aten.lstm.input")
def convert_lstm(
    cx: Emitter,
    x: fx.Node,
    hx: Sequence[fx.Node],
    params: Sequence[fx.Node],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Value, Value, Value]:
    """Write an LSTM: output (T, B, D H), and the last hidden and cell states (layers D, B, H)."""
    y, states = _Stack(cx, "LSTM", x, hx, params, has_biases, num_layers, bidirectional, batch_first).emit()
    return y, states[0], states[1]


@converter("aten.gru.input")
def convert_gru(
    cx: Emitter,
    x: fx.Node,
    hx: fx.Node,
    params: Sequence[fx.Node],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Value, Value]:
    """Write a GRU, its reset gate applied after the product, as torch has it."""
    stack = _Stack(cx, "GRU", x, [hx], params, has_biases, num_layers, bidirectional, batch_first)
    y, states = stack.emit(linear_before_reset=1)
    return y, states[0]


@converter("aten.rnn_tanh.input", "aten.rnn_relu.input")
def convert_rnn(
    cx: Emitter,
    x: fx.Node,
    hx: fx.Node,
    params: Sequence[fx.Node],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Value, Value]:
    """Write a plain recurrent layer."""
    name = "Relu" if "relu" in operator_key(cx.node.target) else "Tanh"
    stack = _Stack(cx, "RNN", x, [hx], params, has_biases, num_layers, bidirectional, batch_first)
    y, states = stack.emit(activations=[name] * (2 if bidirectional else 1))
    return y, states[0]


class _Stack:
    """Layers of one recurrent operator; ONNX has one node for each, of one or two directions."""

    def __init__(
        self,
        cx: Emitter,
        kind: str,
        x: fx.Node,
        hx: Sequence[fx.Node],
        params: Sequence[fx.Node],
        has_biases: bool,
        num_layers: int,
        bidirectional: bool,
        batch_first: bool,
    ) -> None:
        self.cx, self.kind, self.x, self.hx = cx, kind, x, hx
        self.layers, self.directions, self.batch_first = num_layers, 2 if bidirectional else 1, batch_first
        each = len(params) // (num_layers * self.directions)
        if each != (4 if has_biases else 2):
            raise RefusalError(f"{kind} with a projection of its hidden state", "leave out proj_size")
        if cx.rank(x) != 3:
            raise RefusalError(f"{kind} on a packed sequence", "give it a padded tensor (B, T, features)")
        self.params = [params[start : start + each] for start in range(0, len(params), each)]
        self.hidden = cx.fixed(cx.shape(self.params[0][1])[1], "the hidden size")

    def emit(self, **attributes: Any) -> tuple[Value, list[Value]]:
        """Return the output and, for each kind of state, the last states of all layers."""
        cx, directions = self.cx, self.directions
        value = cx.transpose(cx.value(self.x), [1, 0, 2]) if self.batch_first else cx.value(self.x)
        states = 2 if self.kind == "LSTM" else 1
        finals: list[list[Value]] = [[] for _ in range(states)]
        for layer in range(self.layers):
            weights = self._weights(layer)
            initial = [self._initial(number, layer) for number in range(states)]
            y, *last = cx.ops(
                self.kind, value, *weights, None, *initial, dtypes=[None] * (1 + states), hidden_size=self.hidden,
                direction="bidirectional" if directions == 2 else "forward", **attributes,
            )  # fmt: skip
            if directions == 1:
                value = cx.squeeze(y, 1)  # (T, 1, B, H)
            else:  # (T, 2, B, H) -> (T, B, 2 H)
                value = cx.op("Reshape", cx.transpose(y, [0, 2, 1, 3]), cx.vector([0, 0, directions * self.hidden]))
            for kept, final in zip(finals, last, strict=True):
                kept.append(final)
        value = cx.transpose(value, [1, 0, 2]) if self.batch_first else value
        return value, [cx.concat(kept, 0) for kept in finals]

    def _initial(self, number: int, layer: int) -> Value | None:
        """Return the first state of a layer; zeros are what ONNX takes for none."""
        given = self.hx[number]
        if operator_key(given.target) in ("aten.zeros.default", "aten.zeros_like.default", "aten.new_zeros.default"):
            return None
        value, directions = self.cx.value(given), self.directions
        return value if self.layers == 1 else self.cx.slice(value, 0, layer * directions, (layer + 1) * directions)

    def _weights(self, layer: int) -> tuple[Value, Value, Value | None]:
        """Return W (D, gates H, in), R (D, gates H, H) and B (D, 2 gates H) with the gates in ONNX's order."""
        groups = self.params[layer * self.directions : (layer + 1) * self.directions]
        name = self.cx.weight_name(groups[0][0]) if self.cx.weight(groups[0][0]) is not None else ""
        tensors = [[self.cx.weight(param) for param in group] for group in groups]
        if not name or any(tensor is None for group in tensors for tensor in group):
            raise RefusalError(f"{self.kind} whose weights are computed", "keep them parameters of the module")
        stored: list[list[Tensor]] = [[self._ordered(t) for t in group if t is not None] for group in tensors]
        base = name.rpartition(".")[0]
        prefix = f"{base}.layer{layer}" if base else f"layer{layer}"
        w = self.cx.derive(f"{prefix}.W", torch.stack([group[0] for group in stored]))
        r = self.cx.derive(f"{prefix}.R", torch.stack([group[1] for group in stored]))
        if len(stored[0]) == 2:
            return w, r, None
        biases = torch.stack([torch.cat(group[2:]) for group in stored])
        return w, r, self.cx.derive(f"{prefix}.B", biases)

    def _ordered(self, tensor: Tensor) -> Tensor:
        gates = tensor.reshape(len(_GATES[self.kind]), self.hidden, *tensor.shape[1:])
        return gates[list(_GATES[self.kind])].reshape(tensor.shape)


# ---- cells ----


@converter("aten.lstm_cell.default")
def convert_lstm_cell(
    cx: Emitter,
    x: fx.Node,
    hx: Sequence[fx.Node],
    w_ih: fx.Node,
    w_hh: fx.Node,
    b_ih: fx.Node | None = None,
    b_hh: fx.Node | None = None,
) -> tuple[Value, Value]:
    """Write one step of an LSTM: hidden and cell state (B, H)."""
    gates = cx.op("Add", _gates(cx, x, w_ih, b_ih), _gates(cx, hx[0], w_hh, b_hh))
    i, f, g, o = _split(cx, gates, cx.fixed(cx.shape(w_hh)[1], "the hidden size"), 4)
    kept = cx.op("Mul", cx.op("Sigmoid", f), cx.value(hx[1]))
    cell = cx.op("Add", kept, cx.op("Mul", cx.op("Sigmoid", i), cx.op("Tanh", g)))
    return cx.op("Mul", cx.op("Sigmoid", o), cx.op("Tanh", cell)), cell


@converter("aten.gru_cell.default")
def convert_gru_cell(
    cx: Emitter,
    x: fx.Node,
    hx: fx.Node,
    w_ih: fx.Node,
    w_hh: fx.Node,
    b_ih: fx.Node | None = None,
    b_hh: fx.Node | None = None,
) -> Value:
    """Write one step of a GRU."""
    hidden = cx.fixed(cx.shape(w_hh)[1], "the hidden size")
    from_input = _split(cx, _gates(cx, x, w_ih, b_ih), hidden, 3)
    from_state = _split(cx, _gates(cx, hx, w_hh, b_hh), hidden, 3)
    r, z = (cx.op("Sigmoid", cx.op("Add", a, b)) for a, b in zip(from_input[:2], from_state[:2], strict=True))
    n = cx.op("Tanh", cx.op("Add", from_input[2], cx.op("Mul", r, from_state[2])))
    return cx.op("Add", n, cx.op("Mul", z, cx.op("Sub", cx.value(hx), n)))


@converter("aten.rnn_tanh_cell.default", "aten.rnn_relu_cell.default")
def convert_rnn_cell(
    cx: Emitter,
    x: fx.Node,
    hx: fx.Node,
    w_ih: fx.Node,
    w_hh: fx.Node,
    b_ih: fx.Node | None = None,
    b_hh: fx.Node | None = None,
) -> Value:
    """Write one step of a plain recurrent layer."""
    name = "Relu" if "relu" in operator_key(cx.node.target) else "Tanh"
    return cx.op(name, cx.op("Add", _gates(cx, x, w_ih, b_ih), _gates(cx, hx, w_hh, b_hh)))


def _gates(cx: Emitter, x: fx.Node, weight: fx.Node, bias: fx.Node | None) -> Value:
    if cx.rank(x) == 2:
        return cx.op("Gemm", cx.value(x), cx.value(weight), cx.optional(bias), transB=1)
    y = cx.op("MatMul", cx.value(x), cx.transpose(cx.value(weight), [1, 0]))
    return y if bias is None else cx.op("Add", y, cx.value(bias))


def _split(cx: Emitter, gates: Value, hidden: int, count: int) -> tuple[Value, ...]:
    return cx.ops("Split", gates, cx.vector([hidden] * count), dtypes=[None] * count, axis=-1)
