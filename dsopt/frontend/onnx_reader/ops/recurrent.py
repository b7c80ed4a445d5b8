"""Recurrent layers: by torch's own operators, or step by step for the forms that torch lacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dsopt.frontend.onnx_reader.call import Call
from dsopt.frontend.onnx_reader.lower_recurrent import ACTIVATIONS, DIRECTIONS, GATES, fits_torch, torch_weights
from dsopt.frontend.onnx_reader.problems import MalformedError
from dsopt.frontend.onnx_reader.registry import operator

MAX_STEPS = 2048
"""Steps that are written out one by one, where torch has no operator for the whole sequence."""


@operator("dsopt.LSTM", "dsopt.GRU", "dsopt.RNN")
def stored(call: Call) -> tuple[Tensor, ...]:
    """Run a recurrent layer whose weights have been put in torch's order."""
    weights = call.tensors(3)
    return _by_torch(call, call.node.op.removeprefix("dsopt."), call.optional(1), call.optional(2), weights)


@operator("LSTM", "GRU", "RNN")
def recurrent(call: Call) -> tuple[Tensor, ...]:
    """Run a recurrent layer whose weights are computed, or whose form torch lacks."""
    kind = call.node.op
    if fits_torch(call.node):
        weights = torch_weights(kind, call.tensor(1), call.tensor(2), call.optional(3))
        return _by_torch(call, kind, call.optional(5), call.optional(6), weights)
    return _step_by_step(call)


def _by_torch(
    call: Call, kind: str, hidden: Tensor | None, cell: Tensor | None, weights: list[Tensor]
) -> tuple[Tensor, ...]:
    x, layout, direction = call.tensor(0), call.integer("layout", 0), call.text("direction", "forward")
    directions, size, is_first = DIRECTIONS[direction], int(weights[1].shape[1]), bool(layout)
    has_bias = len(weights) == 4 * directions
    batch = x.shape[0] if is_first else x.shape[1]
    states = []
    for state in (hidden, cell)[: 2 if kind == "LSTM" else 1]:
        if state is None:
            states.append(torch.zeros([directions, batch, size], dtype=x.dtype))
        else:
            states.append(state.transpose(0, 1) if is_first else state)
    _check(kind, x, states, weights, [directions, batch, size], has_bias)
    time = 1 if is_first else 0
    if direction == "reverse":
        x = torch.flip(x, [time])
    run: Any = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN": torch.rnn_tanh}[kind]
    if kind == "RNN" and call.texts("activations", ("Tanh",))[0] == "Relu":
        run = torch.rnn_relu
    state_argument = tuple(states) if kind == "LSTM" else states[0]
    y, *last = run(x, state_argument, weights, has_bias, 1, 0.0, False, directions == 2, is_first)
    if direction == "reverse":
        y = torch.flip(y, [time])
    if directions == 1:
        y = y.unsqueeze(2 if is_first else 1)
    else:
        y = y.unflatten(2, (directions, size))
        y = y if is_first else y.transpose(1, 2)
    return (y, *(state.transpose(0, 1) if is_first else state for state in last))


def _check(
    kind: str, x: Tensor, states: list[Tensor], weights: list[Tensor], state_shape: list[Any], has_bias: bool
) -> None:
    """Compare every shape: torch's operators for whole sequences trust them, and write outside their memory otherwise."""
    directions, _, size = state_shape
    gates = len(GATES[kind])
    shapes = [[gates * size, x.shape[-1]], [gates * size, size]] + [[gates * size]] * (2 if has_bias else 0)
    if x.dim() != 3 or [list(weight.shape) for weight in weights] != shapes * directions:
        raise MalformedError(f"its weights have shapes {[list(weight.shape) for weight in weights]}")
    if any(list(state.shape) != state_shape for state in states):
        raise MalformedError(f"its initial state is not of shape {state_shape}")
    if any(tensor.dtype != x.dtype for tensor in (*states, *weights)):
        raise MalformedError("its input, state and weights have different element types")


# ---- step by step ----

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Cell:
    """The weights and functions of one direction. lengths: of each sequence, None where all are full."""

    weight: Tensor
    recurrence: Tensor
    bias: Tensor
    peepholes: tuple[Tensor, ...]
    functions: tuple[Function, ...]
    clip: float
    lengths: Tensor | None


def _step_by_step(call: Call) -> tuple[Tensor, ...]:
    kind, x = call.node.op, call.tensor(0)
    is_first = bool(call.integer("layout", 0))
    x = x.transpose(0, 1) if is_first else x
    steps = x.shape[0]
    if not isinstance(steps, int) or steps > MAX_STEPS:
        shown = steps if isinstance(steps, int) else "a varying number of"
        nearest = "linear_before_reset=1" if kind == "GRU" else "no peepholes, lengths, clipping or other activations"
        raise call.unsupported(f"this form of {kind} over {shown} steps", f"{nearest}, or a fixed number of steps")
    weight, recurrence, bias = call.tensor(1), call.tensor(2), call.optional(3)
    direction = call.text("direction", "forward")
    directions, size = DIRECTIONS.get(direction, 0), int(recurrence.shape[-1])
    if not directions or weight.dim() != 3 or weight.shape[0] != directions:
        raise MalformedError(f"its direction is {direction!r} and its weights are of shape {list(weight.shape)}")
    functions = _functions(call, directions)
    peepholes = call.optional(7)
    outputs, hiddens, cells = [], [], []
    for index in range(directions):
        cell = _Cell(
            weight[index],
            recurrence[index],
            bias[index] if bias is not None else torch.zeros([2 * weight.shape[1]], dtype=x.dtype),
            peepholes[index].chunk(3) if peepholes is not None else (),
            functions[index],
            call.real("clip", 0.0),
            call.optional(4),
        )
        backwards = direction == "reverse" or index == 1
        states = [_initial(call, 5 + part, index, x, size, is_first) for part in range(2)]
        y, hidden, memory = _run(call, kind, x, states, cell, backwards)
        outputs.append(y)
        hiddens.append(hidden)
        cells.append(memory)
    y, last = torch.stack(outputs, 1), [torch.stack(hiddens), torch.stack(cells)][: 2 if kind == "LSTM" else 1]
    if is_first:
        return (y.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in last))
    return (y, *last)


def _initial(call: Call, position: int, direction: int, x: Tensor, size: int, is_first: bool) -> Tensor:
    state = call.optional(position)
    if state is None:
        return torch.zeros([x.shape[1], size], dtype=x.dtype)
    return state[:, direction] if is_first else state[direction]


def _run(
    call: Call, kind: str, x: Tensor, states: list[Tensor], cell: _Cell, backwards: bool
) -> tuple[Tensor, Tensor, Tensor]:
    hidden, memory = states
    outputs: list[Tensor] = []
    order = range(x.shape[0])
    for step in reversed(order) if backwards else order:
        inputs = F.linear(x[step], cell.weight)
        if kind == "LSTM":
            new_hidden, new_memory = _lstm(call, inputs, hidden, memory, cell)
        else:
            new_memory = memory
            new_hidden = _gru(call, inputs, hidden, cell) if kind == "GRU" else _rnn(inputs, hidden, cell)
        if cell.lengths is None:
            hidden, memory = new_hidden, new_memory
            outputs.append(hidden)
            continue
        runs = (cell.lengths > step).unsqueeze(1)
        hidden, memory = torch.where(runs, new_hidden, hidden), torch.where(runs, new_memory, memory)
        outputs.append(torch.where(runs, new_hidden, torch.zeros_like(new_hidden)))
    return torch.stack(outputs[::-1] if backwards else outputs), hidden, memory


def _clipped(x: Tensor, cell: _Cell) -> Tensor:
    return x.clamp(-cell.clip, cell.clip) if cell.clip > 0 else x


def _lstm(call: Call, inputs: Tensor, hidden: Tensor, memory: Tensor, cell: _Cell) -> tuple[Tensor, Tensor]:
    bias, recurrent_bias = cell.bias.chunk(2)
    i, o, f, c = (inputs + F.linear(hidden, cell.recurrence) + bias + recurrent_bias).chunk(4, 1)
    gate, candidate, output = cell.functions
    if cell.peepholes:
        i, f = i + cell.peepholes[0] * memory, f + cell.peepholes[2] * memory
    i = gate(_clipped(i, cell))
    f = 1 - i if call.integer("input_forget", 0) else gate(_clipped(f, cell))
    memory = f * memory + i * candidate(_clipped(c, cell))
    if cell.peepholes:
        o = o + cell.peepholes[1] * memory
    return gate(_clipped(o, cell)) * output(memory), memory


def _gru(call: Call, inputs: Tensor, hidden: Tensor, cell: _Cell) -> Tensor:
    bias, recurrent_bias = cell.bias.chunk(2)
    gate, candidate = cell.functions
    x_z, x_r, x_h = (inputs + bias).chunk(3, 1)
    r_z, r_r, r_h = cell.recurrence.chunk(3)
    b_z, b_r, b_h = recurrent_bias.chunk(3)
    z = gate(_clipped(x_z + F.linear(hidden, r_z, b_z), cell))
    r = gate(_clipped(x_r + F.linear(hidden, r_r, b_r), cell))
    if call.integer("linear_before_reset", 0):
        h = x_h + r * F.linear(hidden, r_h, b_h)
    else:
        h = x_h + F.linear(r * hidden, r_h, b_h)
    return (1 - z) * candidate(_clipped(h, cell)) + z * hidden


def _rnn(inputs: Tensor, hidden: Tensor, cell: _Cell) -> Tensor:
    bias, recurrent_bias = cell.bias.chunk(2)
    return cell.functions[0](_clipped(inputs + F.linear(hidden, cell.recurrence) + bias + recurrent_bias, cell))


# Name: function of input, alpha and beta, and the defaults of alpha and beta.
_FUNCTIONS: dict[str, tuple[Callable[[Tensor, float, float], Tensor], float, float]] = {
    "relu": (lambda x, a, b: torch.relu(x), 0.0, 0.0),
    "tanh": (lambda x, a, b: torch.tanh(x), 0.0, 0.0),
    "sigmoid": (lambda x, a, b: torch.sigmoid(x), 0.0, 0.0),
    "affine": (lambda x, a, b: x * a + b, 1.0, 0.0),
    "leakyrelu": (lambda x, a, b: F.leaky_relu(x, a), 0.01, 0.0),
    "thresholdedrelu": (lambda x, a, b: F.threshold(x, a, 0.0), 1.0, 0.0),
    "scaledtanh": (lambda x, a, b: torch.tanh(x * b) * a, 1.0, 1.0),
    "hardsigmoid": (lambda x, a, b: torch.clamp(x * a + b, 0.0, 1.0), 0.2, 0.5),
    "elu": (lambda x, a, b: F.elu(x, a), 1.0, 0.0),
    "softsign": (lambda x, a, b: F.softsign(x), 0.0, 0.0),
    "softplus": (lambda x, a, b: F.softplus(x), 0.0, 0.0),
}
_WITH_ALPHA = ("affine", "leakyrelu", "thresholdedrelu", "scaledtanh", "hardsigmoid", "elu")
_WITH_BETA = ("affine", "scaledtanh", "hardsigmoid")


def _functions(call: Call, directions: int) -> list[tuple[Function, ...]]:
    defaults = ACTIVATIONS[call.node.op]
    names = [name.lower() for name in call.texts("activations", defaults * directions)]
    if len(names) != len(defaults) * directions or any(name not in _FUNCTIONS for name in names):
        raise call.unsupported(f"{call.node.op} with activations {names}", ", ".join(defaults))
    alphas, betas = call.reals("activation_alpha") or [], call.reals("activation_beta") or []
    found: list[Function] = []
    for name in names:
        function, alpha, beta = _FUNCTIONS[name]
        if name in _WITH_ALPHA and alphas:
            alpha = alphas.pop(0)
        if name in _WITH_BETA and betas:
            beta = betas.pop(0)
        found.append(_bound(function, alpha, beta))
    count = len(defaults)
    return [tuple(found[count * index : count * (index + 1)]) for index in range(directions)]


def _bound(function: Callable[[Tensor, float, float], Tensor], alpha: float, beta: float) -> Function:
    return lambda x: function(x, alpha, beta)
