"""Rewrite LSTM, GRU and RNN with stored weights for torch's own operators: gates in torch's order, one matrix a direction.

LSTM(x, W[iofc], R, B)  ->  dsopt.LSTM(x, h0, c0, weight_ih[ifgo], weight_hh, bias_ih, bias_hh, ...)
GRU(x, W[zrh], R, B)    ->  dsopt.GRU(x, h0, "", weight_ih[rzn], ...), if linear_before_reset is set
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dsopt.frontend.onnx_reader.graph import Graph, Node
from dsopt.frontend.onnx_reader.names import qualified
from dsopt.frontend.onnx_reader.values import Constant

GATES: dict[str, tuple[int, ...]] = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
"""For each of torch's gates, its place among ONNX's: i o f c, z r h."""
ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "LSTM": ("Sigmoid", "Tanh", "Tanh"),
    "GRU": ("Sigmoid", "Tanh"),
    "RNN": ("Tanh",),
}
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}


def fits_torch(node: Node) -> bool:
    """Tell whether torch has this form of a recurrent operator: no peepholes, lengths, clipping or other functions."""
    attributes, directions = node.attributes, DIRECTIONS.get(str(node.attributes.get("direction", "forward")), 0)
    given = [bool(name) for name in node.inputs] + [False] * 8
    if not directions or given[4] or given[7] or "clip" in attributes or attributes.get("input_forget", 0):
        return False
    if node.op == "GRU" and not attributes.get("linear_before_reset", 0):
        return False
    functions = attributes.get("activations") or ACTIVATIONS[node.op] * directions
    if node.op == "RNN" and functions == ("Relu",) * directions:
        return True
    return functions == ACTIVATIONS[node.op] * directions


def torch_weights(kind: str, weight: Tensor, recurrence: Tensor, bias: Tensor | None) -> list[Tensor]:
    """Return torch's weights for each direction: input, recurrence and, if there is a bias, the two biases.

    weight: (directions, gates * H, I); recurrence: (directions, gates * H, H); bias: (directions, 2 * gates * H).
    """
    order, result = GATES[kind], list[Tensor]()
    for direction in range(weight.shape[0]):
        result.append(_reordered(weight[direction], order))
        result.append(_reordered(recurrence[direction], order))
        if bias is not None:
            result.extend(_reordered(part, order) for part in bias[direction].chunk(2))
    return result


def _reordered(stacked: Tensor, order: tuple[int, ...]) -> Tensor:
    gates = stacked.chunk(len(order))
    return torch.cat([gates[place] for place in order])


def lower_recurrent(graph: Graph, constants: dict[str, Constant]) -> Graph:
    """Return the graph with torch's recurrent operators where they fit; adds their weights to `constants`."""
    return replace(graph, nodes=tuple(_lowered(node, constants) for node in graph.nodes))


def _lowered(node: Node, constants: dict[str, Constant]) -> Node:
    if node.op not in GATES or not fits_torch(node):
        return node
    inputs = [*node.inputs, *[""] * (7 - len(node.inputs))]
    stored = [constants.get(name) for name in inputs[1:4]]
    weight, recurrence, bias = stored
    if weight is None or recurrence is None or (inputs[3] and bias is None):
        return node
    gates, hidden = len(GATES[node.op]), recurrence.tensor.shape[-1]
    directions = DIRECTIONS[str(node.attributes.get("direction", "forward"))]
    if weight.tensor.dim() != 3 or weight.tensor.shape[:2] != (directions, gates * hidden):
        return node
    if recurrence.tensor.shape != (directions, gates * hidden, hidden):
        return node
    if bias is not None and bias.tensor.shape != (directions, 2 * gates * hidden):
        return node
    tensors = torch_weights(node.op, weight.tensor, recurrence.tensor, None if bias is None else bias.tensor)
    layer = node.layer or qualified(node.name)
    roles = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")[: 4 if bias is not None else 2]
    names = [f"{layer}.{role}{suffix}" for suffix in ("", "_reverse")[:directions] for role in roles]
    values = [f"{node.name}/{name}" for name in names]
    for value, name, tensor in zip(values, names, tensors, strict=True):
        constants[value] = Constant(tensor.contiguous(), name, tensor.is_floating_point())
    return replace(node, op=f"dsopt.{node.op}", inputs=(inputs[0], inputs[5], inputs[6], *values), layer=layer)
