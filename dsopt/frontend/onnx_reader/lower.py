"""Rewrite products with a stored matrix as `linear`, as the network that was exported had them.

MatMul(x, W), Add(., b)  ->  dsopt.Linear(x, W^T, b)
Gemm(x, W, b)            ->  dsopt.Linear(x, W^T, b)
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from dsopt.frontend.onnx_reader.graph import Graph, Node
from dsopt.frontend.onnx_reader.values import Constant

LINEAR = "dsopt.Linear"


@dataclass
class _Lowering:
    constants: dict[str, Constant]
    transposed: dict[str, str]
    uses: Counter[str]

    def graph(self, graph: Graph) -> Graph:
        """Return the graph with linear layers for products, those in subgraphs too."""
        readers: dict[str, Node] = {}
        for node in graph.nodes:
            for name in node.inputs:
                readers.setdefault(name, node)
        absorbed: set[int] = set()
        nodes: list[Node] = []
        for node in graph.nodes:
            if id(node) in absorbed:
                continue
            linear = self._product(node) or self._gemm(node)
            if linear is None:
                nodes.append(self._subgraphs(node))
                continue
            follower = readers.get(linear.outputs[0])
            bias = self._bias(linear, follower)
            if bias and follower is not None and self.uses[linear.outputs[0]] == 1:
                absorbed.add(id(follower))
                linear = replace(linear, inputs=(*linear.inputs[:2], bias), outputs=follower.outputs)
            nodes.append(linear)
        return replace(graph, nodes=tuple(nodes))

    def _product(self, node: Node) -> Node | None:
        if node.op != "MatMul" or len(node.inputs) != 2 or not self._is_matrix(node.inputs[1]):
            return None
        return replace(node, op=LINEAR, inputs=(node.inputs[0], self._transpose(node.inputs[1])))

    def _gemm(self, node: Node) -> Node | None:
        if node.op != "Gemm" or len(node.inputs) < 2 or not self._is_matrix(node.inputs[1]):
            return None
        if node.attributes.get("alpha", 1.0) != 1.0 or node.attributes.get("transA", 0):
            return None
        weight = node.inputs[1] if node.attributes.get("transB", 0) else self._transpose(node.inputs[1])
        if len(node.inputs) == 2 or not node.inputs[2]:
            return replace(node, op=LINEAR, inputs=(node.inputs[0], weight), attributes={})
        bias = self.constants.get(node.inputs[2])
        features = self.constants[weight].tensor.shape[0]
        if bias is None or node.attributes.get("beta", 1.0) != 1.0:
            return None
        if bias.tensor.shape == (1, features):
            name = f"{node.inputs[2]}^1"
            self.constants.setdefault(name, replace(bias, tensor=bias.tensor.reshape(features)))
            return replace(node, op=LINEAR, inputs=(node.inputs[0], weight, name), attributes={})
        if bias.tensor.shape != (features,):
            return None
        return replace(node, op=LINEAR, inputs=(node.inputs[0], weight, node.inputs[2]), attributes={})

    def _is_matrix(self, name: str) -> bool:
        constant = self.constants.get(name)
        return constant is not None and constant.tensor.dim() == 2 and constant.tensor.is_floating_point()

    def _transpose(self, name: str) -> str:
        """Return the name of the constant that is `name` transposed, made if there is none."""
        if name in self.transposed:
            return self.transposed[name]
        turned = f"{name}^T"
        constant = self.constants[name]
        if turned not in self.constants:
            self.constants[turned] = replace(constant, tensor=constant.tensor.t().contiguous())
        return turned

    def _bias(self, linear: Node, follower: Node | None) -> str:
        """Return the name of the bias that an Add after a product adds, "" if it adds something else."""
        if follower is None or follower.op != "Add" or len(linear.inputs) != 2 or len(follower.inputs) != 2:
            return ""
        others = [name for name in follower.inputs if name != linear.outputs[0]]
        bias = self.constants.get(others[0]) if len(others) == 1 else None
        features = self.constants[linear.inputs[1]].tensor.shape[0]
        return others[0] if bias is not None and bias.tensor.shape == (features,) else ""

    def _subgraphs(self, node: Node) -> Node:
        if not any(True for _ in node.graphs()):
            return node
        attributes = {
            name: self.graph(value) if isinstance(value, Graph) else value for name, value in node.attributes.items()
        }
        return replace(node, attributes=attributes)


def lower(graph: Graph, constants: dict[str, Constant], transposed: dict[str, str]) -> Graph:
    """Return the graph with `dsopt.Linear` for products with stored matrices; adds the turned matrices to `constants`."""
    uses = Counter(name for node in graph.walk() for name in node.inputs if name)
    uses.update(port.value for port in graph.outputs)
    uses.update(name for node in graph.walk() for inner in node.graphs() for name in inner.captured())
    return _Lowering(constants, transposed, uses).graph(graph)
