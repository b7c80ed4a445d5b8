"""LSTM, GRU and plain recurrent layers: the gates of one hidden channel go together.

Weights store (gates * H, ..). The states of all layers and directions are one tensor (layers, B, H), so all have the same H.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from dsopt.passes.prune.axes import Expr, fixed
from dsopt.passes.prune.rules.base import Named, Result, Rule, Unknown, each, packet_name, rank, tensor

if TYPE_CHECKING:
    from dsopt.passes.prune.inference import AxisInference

_GATES = {
    **{"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1},
    **{"lstm_cell": 4, "gru_cell": 3, "rnn_tanh_cell": 1, "rnn_relu_cell": 1},
}


def _layer(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    if "input" not in named or "params" not in named:
        raise Unknown("it reads packed sequences")
    x, gates = tensor(named["input"]), _GATES[packet_name(node)]
    states = [tensor(each) for each in named["hx"]] if gates == 4 else [tensor(named["hx"])]
    params = [tensor(each) for each in named["params"]]
    directions = 2 if named["bidirectional"] else 1
    layers = named["num_layers"]
    per_cell = len(params) // (layers * directions)
    has_projection = per_cell == (5 if named["has_biases"] else 3)
    hidden = inference.dim(states[-1], rank(states[-1]) - 1)
    out = inference.dim(states[0], rank(states[0]) - 1) if has_projection else hidden
    inference.tie(states[0], rank(states[0]) - 1, out)
    features = inference.dim(x, rank(x) - 1)
    result: Expr = ()
    for layer in range(layers):
        for direction in range(directions):
            start = (layer * directions + direction) * per_cell
            _cell_weights(inference, params[start : start + per_cell], gates, hidden, features, out)
        result = out if directions == 1 else inference.concat([out, out])
        features = result
    axes = (*inference.axes(x)[:-1], result)
    for state in states:
        inference.pin_dims(state, range(rank(state) - 1), "it is the number of layers or of samples")
    finals = [(*inference.axes(state)[:-1], inference.dim(state, rank(state) - 1)) for state in states]
    return [axes, *finals]


def _cell_weights(
    inference: AxisInference, weights: list[fx.Node], gates: int, hidden: Expr, features: Expr, out: Expr
) -> None:
    """Weights of the input, of the state, perhaps two biases, perhaps the projection (P, H)."""
    rows = (*fixed(gates), *hidden)
    inference.tie(weights[0], 0, rows)
    inference.tie(weights[0], 1, features)
    inference.tie(weights[1], 0, rows)
    inference.tie(weights[1], 1, out)
    for each_weight in weights[2:]:
        if rank(each_weight) == 1:
            inference.tie(each_weight, 0, rows)
        else:
            inference.tie(each_weight, 0, out)
            inference.tie(each_weight, 1, hidden)


def _cell(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    x, gates = tensor(named["input"]), _GATES[packet_name(node)]
    states = [tensor(each) for each in named["hx"]] if gates == 4 else [tensor(named["hx"])]
    hidden = inference.dim(states[0], rank(states[0]) - 1)
    weights = [tensor(named["w_ih"]), tensor(named["w_hh"])]
    weights += [tensor(named[name]) for name in ("b_ih", "b_hh") if named[name] is not None]
    _cell_weights(inference, weights, gates, hidden, inference.dim(x, rank(x) - 1), hidden)
    for state in states:
        inference.tie(state, rank(state) - 1, hidden)
    axes = (*inference.axes(states[0])[:-1], hidden)
    return [axes] * len(states) if gates == 4 else axes


RULES: dict[str, Rule] = {
    **each("lstm gru rnn_tanh rnn_relu", _layer),
    **each("lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell", _cell),
}
