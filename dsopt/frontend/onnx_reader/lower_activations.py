"""Rewrite activations that ONNX has no operator for as the one operator that they were.

Mul(x, Sigmoid(x))                   ->  dsopt.Silu(x)
Mul(x, HardSigmoid(x, 1/6, 1/2))     ->  HardSwish(x)
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

from dsopt.frontend.onnx_reader.graph import Graph, Node

SILU = "dsopt.Silu"


def lower_activations(graph: Graph) -> Graph:
    """Return the graph with single operators for products of a value and its own gate; subgraphs stay as they are."""
    uses = Counter(name for node in graph.walk() for name in node.reads())
    uses.update(port.value for port in graph.outputs)
    gates = {node.outputs[0]: node for node in graph.nodes if _activation(node) and uses[node.outputs[0]] == 1}
    absorbed: set[int] = set()
    made: dict[int, Node] = {}
    for node in graph.nodes:
        if node.op != "Mul" or len(node.inputs) != 2:
            continue
        for x, gated in (node.inputs, node.inputs[::-1]):
            gate = gates.get(gated)
            if gate is not None and gate.inputs[0] == x:
                absorbed.add(id(gate))
                made[id(node)] = replace(node, op=_activation(gate), inputs=(x,), attributes={})
    nodes = tuple(made.get(id(node), node) for node in graph.nodes if id(node) not in absorbed)
    return replace(graph, nodes=nodes)


def _activation(node: Node) -> str:
    """Return what a gate makes of a product with its own input, "" for any other node."""
    if len(node.inputs) != 1 or len(node.outputs) != 1:
        return ""
    if node.op == "Sigmoid":
        return SILU
    slope, middle = node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)
    if node.op != "HardSigmoid" or not isinstance(slope, float) or not isinstance(middle, (int, float)):
        return ""
    return "HardSwish" if math.isclose(slope, 1 / 6, rel_tol=1e-6) and middle == 0.5 else ""
