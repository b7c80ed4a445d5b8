"""Write a program so that each operator is one that `semantics` describes: activations apart, attention and recurrent layers in parts.

linear_act(x, w, b, "gelu")            ->  gelu(linear(x, w, b))
scaled_dot_product_attention(q, k, v)  ->  matmul(softmax(matmul(q, k^T) * scale), v)
lstm(x, (h, c), weights, layers=2)     ->  two fake_quantized_lstm, each with one direction of one layer
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from dsopt.ir import Program, Rewriter
from dsopt.ir.convolution import convolution

_ATEN = torch.ops.aten
_DSOPT = torch.ops.dsopt

HIDDEN_GRID = (1 / 128, 0)
"""The grid of a recurrent layer's result until it is calibrated."""

CELL_BITS = 11
"""Bits after the point of an LSTM's cell: its range is then -16 to 16, four times what tanh still tells apart."""

ORIGIN = "origin"
"""The fact that names the node of the float program that had the same value."""

VANISHING = -1e4
"""An additive mask at or below this hides its key: exp(-1e4) is 0 in float32."""


def normalize(
    program: Program, rewriter: Rewriter, look: Callable[[list[fx.Node]], dict[fx.Node, list[Tensor]]]
) -> None:
    """Rewrite all of it. look(nodes): the values that nodes have on the calibration data."""
    split_activations(rewriter)
    _split_recurrent(program, rewriter)
    attentions = [node for node in program.graph.nodes if node.target is _ATEN.scaled_dot_product_attention.default]
    masks = [mask for node in attentions if (mask := _attention_arguments(node)["attn_mask"]) is not None]
    values = look([mask for mask in dict.fromkeys(masks) if mask.meta["val"].dtype != torch.bool]) if masks else {}
    for node in attentions:
        _open_attention(program, rewriter, node, values)
    rewriter.erase_dead()


# ---- activations ----


def split_activations(rewriter: Rewriter) -> None:
    """Undo what fuse-activation did."""
    for node in list(rewriter.program.graph.nodes):
        if node.target in _UNFUSED:
            _UNFUSED[node.target](rewriter, node)


_ACTIVATIONS: dict[str, Callable[[list[float]], tuple[Any, tuple[Any, ...], dict[str, Any]]]] = {
    "relu": lambda params: (_ATEN.relu.default, (), {}),
    "relu6": lambda params: (_ATEN.hardtanh.default, (0.0, 6.0), {}),
    "clamp": lambda params: (_ATEN.clamp.default, tuple(params), {}),
    "leaky_relu": lambda params: (_ATEN.leaky_relu.default, tuple(params), {}),
    "elu": lambda params: (_ATEN.elu.default, tuple(params), {}),
    "hardswish": lambda params: (_ATEN.hardswish.default, (), {}),
    "hardsigmoid": lambda params: (_ATEN.hardsigmoid.default, (), {}),
    "sigmoid": lambda params: (_ATEN.sigmoid.default, (), {}),
    "tanh": lambda params: (_ATEN.tanh.default, (), {}),
    "gelu": lambda params: (_ATEN.gelu.default, (), {}),
    "gelu_tanh": lambda params: (_ATEN.gelu.default, (), {"approximate": "tanh"}),
    "silu": lambda params: (_ATEN.silu.default, (), {}),
}


def _activate(rewriter: Rewriter, value: fx.Node, node: fx.Node, name: Any, params: Any) -> None:
    if name != "none":
        op, args, kwargs = _ACTIVATIONS[name](list(params))
        value = rewriter.call(op, value, *args, like=node, **kwargs)
    _take_place(rewriter, node, value)


def _take_place(rewriter: Rewriter, node: fx.Node, value: fx.Node) -> None:
    """Replace a node, and remember which value of the float program this is, so that the two can be compared."""
    rewriter.program.facts(node).setdefault(ORIGIN, node.name)
    rewriter.replace(node, value)


def _unfuse_conv(rewriter: Rewriter, node: fx.Node) -> None:
    conv = convolution(node)
    plain = rewriter.call(_ATEN.convolution.default, conv.x, conv.weight, conv.bias, *conv.geometry, like=node)
    _activate(rewriter, plain, node, *node.args[-2:])


def _unfuse_linear(rewriter: Rewriter, node: fx.Node) -> None:
    x, weight, bias, name, params = node.args
    _activate(rewriter, rewriter.call(_ATEN.linear.default, x, weight, bias, like=node), node, name, params)


def _unfuse_add(rewriter: Rewriter, node: fx.Node) -> None:
    x, y, name, params = node.args
    _activate(rewriter, rewriter.call(_ATEN.add.Tensor, x, y, like=node), node, name, params)


_UNFUSED: dict[Any, Callable[[Rewriter, fx.Node], None]] = {
    _DSOPT.conv_act.default: _unfuse_conv,
    _DSOPT.linear_act.default: _unfuse_linear,
    _DSOPT.add_act.default: _unfuse_add,
}


# ---- attention ----


def _attention_arguments(node: fx.Node) -> dict[str, Any]:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given: dict[str, Any] = {
        "attn_mask": None,
        "dropout_p": 0.0,
        "is_causal": False,
        "scale": None,
        "enable_gqa": False,
    }
    return given | dict(zip(names, node.args, strict=False)) | dict(node.kwargs)


def _open_attention(program: Program, rewriter: Rewriter, node: fx.Node, masks: dict[fx.Node, list[Tensor]]) -> None:
    given = _attention_arguments(node)
    q, k, v = given["query"], given["key"], given["value"]
    if given["dropout_p"] or program.dtype(q) != torch.float32 or not isinstance(q.meta["val"].shape[-1], int):
        return
    if given["enable_gqa"]:
        k, v = (_repeated(rewriter, node, q, each) for each in (k, v))
    mask = _visible(program, rewriter, node, given, masks)
    if isinstance(mask, str):
        rewriter.skip(node, mask)
        return
    turned = rewriter.call(_ATEN.transpose.int, k, -2, -1, like=node)
    scores = rewriter.call(_ATEN.matmul.default, q, turned, like=node)
    factor = 1 / math.sqrt(q.meta["val"].shape[-1]) if given["scale"] is None else float(given["scale"])
    scores = rewriter.call(_ATEN.mul.Tensor, scores, factor, like=node)
    if mask is not None:
        scores = rewriter.call(_ATEN.where.ScalarOther, mask, scores, -math.inf, like=node)
    # a row without any key is all zeros, as attention has it
    soft = _ATEN.softmax.int if given["attn_mask"] is None else _ATEN._safe_softmax.default
    weights = rewriter.call(soft, scores, -1, like=node)
    _take_place(rewriter, node, rewriter.call(_ATEN.matmul.default, weights, v, like=node))


def _repeated(rewriter: Rewriter, node: fx.Node, q: fx.Node, heads: fx.Node) -> fx.Node:
    times = q.meta["val"].shape[-3] // heads.meta["val"].shape[-3]
    return rewriter.call(_ATEN.repeat_interleave.self_int, heads, int(times), -3, like=node) if times != 1 else heads


def _visible(
    program: Program, rewriter: Rewriter, node: fx.Node, given: dict[str, Any], masks: dict[fx.Node, list[Tensor]]
) -> fx.Node | str | None:
    """Return a bool mask of the keys that a query may see; None for all, or a text that says why there is no such mask."""
    mask = given["attn_mask"]
    if mask is None:
        return _causal(program, rewriter, node, given) if given["is_causal"] else None
    if mask.meta["val"].dtype == torch.bool:
        return mask  # type: ignore[no-any-return]
    values = [program.weights[name]] if (name := program.weight_name(mask)) else masks.get(mask, [])
    if not values or not all(bool(((each == 0) | (each <= VANISHING)).all()) for each in values):
        return f"its additive mask holds other numbers than 0 and those below {VANISHING:g}"
    rewriter.note(node, f"its additive mask is read as: a key is hidden where it is at or below {VANISHING:g}")
    if program.weight_name(mask):
        return rewriter.add_weight(f"{program.layer(node) or node.name}.visible", values[0] > VANISHING, "constant")
    return rewriter.call(_ATEN.gt.Scalar, mask, VANISHING, like=node)


def _causal(program: Program, rewriter: Rewriter, node: fx.Node, given: dict[str, Any]) -> fx.Node:
    T, S = given["query"].meta["val"].shape[-2], given["key"].meta["val"].shape[-2]
    if isinstance(T, int) and isinstance(S, int):
        return rewriter.add_weight(
            f"{program.layer(node) or node.name}.causal", torch.ones(T, S, dtype=torch.bool).tril(), "constant"
        )
    places = []
    for side, shape in (("query", (-1, 1)), ("key", (1, -1))):
        count = rewriter.call(_ATEN.sym_size.int, given[side], -2, like=node)
        steps = rewriter.call(_ATEN.arange.default, count, device=torch.device("cpu"), pin_memory=False, like=node)
        places.append(rewriter.call(_ATEN.reshape.default, steps, list(shape), like=node))
    return rewriter.call(_ATEN.ge.Tensor, places[0], places[1], like=node)


# ---- recurrent layers ----


def _split_recurrent(program: Program, rewriter: Rewriter) -> None:
    for node in list(program.graph.nodes):
        if node.target in (_ATEN.lstm.input, _ATEN.gru.input):
            _Splitter(program, rewriter, node).split()


class _Splitter:
    """Write one lstm or gru as one operator for each layer and direction."""

    def __init__(self, program: Program, rewriter: Rewriter, node: fx.Node) -> None:
        self.program, self.rewriter, self.node = program, rewriter, node
        self.is_lstm = node.target is _ATEN.lstm.input
        arguments: tuple[Any, ...] = node.args
        self.x, first, self.params, self.has_biases, self.layers, self.dropout, _, bidirectional, self.batch_first = (
            arguments
        )
        self.first = list(first) if self.is_lstm else [first]
        self.directions = 2 if bidirectional else 1

    def split(self) -> None:
        node, each, stored = self.node, 4 if self.has_biases else 2, self.params
        if len(stored) != self.layers * self.directions * each or self.x.meta["val"].dim() != 3:
            return
        if any(self.program.weight(item) is None for item in stored) or self.program.dtype(stored[0]) != torch.float32:
            return
        last: list[list[fx.Node]] = []
        x = self.x
        for layer in range(self.layers):
            outputs = []
            for direction in range(self.directions):
                slot = layer * self.directions + direction
                results = self._direction(x, slot, stored[slot * each : (slot + 1) * each], direction == 1)
                outputs.append(results[0])
                last.append(results[1:])
            x = outputs[0] if len(outputs) == 1 else self._call(_ATEN.cat.default, outputs, -1)
            if self.dropout and layer + 1 < self.layers:
                x = self._call(_ATEN.dropout.default, x, self.dropout, False)
        replacements = [x, *(self._stacked([each[number] for each in last]) for number in range(len(self.first)))]
        for user in list(node.users):
            number: Any = user.args[1]
            _take_place(self.rewriter, user, replacements[number])

    def _direction(self, x: Any, slot: int, weights: Any, reverse: bool) -> list[fx.Node]:
        starts = [self._call(_ATEN.select.int, each, 0, slot) for each in self.first]
        w_ih, w_hh, *biases = weights
        geometry = (self.batch_first, reverse)
        if self.is_lstm:
            bias = self._added(biases) if biases else None
            made = self._call(
                _DSOPT.fake_quantized_lstm.default, x, *starts, w_ih, w_hh, bias, *HIDDEN_GRID, CELL_BITS, *geometry
            )
        else:
            b_ih, b_hh = biases or (None, None)
            made = self._call(
                _DSOPT.fake_quantized_gru.default, x, *starts, w_ih, w_hh, b_ih, b_hh, *HIDDEN_GRID, *geometry
            )
        return [self._call(operator.getitem, made, number) for number in range(3 if self.is_lstm else 2)]

    def _added(self, biases: list[fx.Node]) -> fx.Node:
        """Store the sum of the two biases, which a step only ever adds up."""
        name = str(self.program.weight_name(biases[0])).replace("bias_ih", "bias")
        total = sum(self.program.weight(each) for each in biases)  # type: ignore[misc]
        return self.rewriter.add_weight(name, total)  # type: ignore[arg-type]

    def _stacked(self, states: list[fx.Node]) -> fx.Node:
        rows = [self._call(_ATEN.unsqueeze.default, state, 0) for state in states]
        return rows[0] if len(rows) == 1 else self._call(_ATEN.cat.default, rows, 0)

    def _call(self, op: Callable[..., Any], *args: Any) -> fx.Node:
        return self.rewriter.call(op, *args, like=self.node)
