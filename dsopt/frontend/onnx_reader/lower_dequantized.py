"""Bring stored integers into the form that dsopt's passes take for weights.

DequantizeLinear(uint8 W, s, z)                  ->  DequantizeLinear(int8 W - 128, s, z - 128), z left out where it is 0
Transpose(DequantizeLinear(W, s))                ->  DequantizeLinear(W^T, s)
MatMul(x, DequantizeLinear(W, s)), Add(., b)     ->  dsopt.Linear(x, DequantizeLinear(W^T, s), b)
Gemm(x, DequantizeLinear(W, s), b)               ->  dsopt.Linear(x, DequantizeLinear(W^T, s), b)
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dsopt.frontend.onnx_reader.graph import Graph, Node
from dsopt.frontend.onnx_reader.lower import LINEAR
from dsopt.frontend.onnx_reader.values import Constant

DEQUANTIZE = "DequantizeLinear"
BITS = "dsopt.bits"
"""The attribute that says how wide stored integers are: 4 where all of a weight fit, whatever type the file has for them."""


@dataclass
class _Lowering:
    constants: dict[str, Constant]
    uses: Counter[str]
    stored: dict[str, Node] = field(default_factory=dict)
    """The DequantizeLinear of each value that one computes of constants."""

    def graph(self, graph: Graph) -> Graph:
        nodes: list[Node] = []
        absorbed: set[int] = set()
        readers: dict[str, Node] = {}
        for node in graph.nodes:
            for name in node.inputs:
                readers.setdefault(name, node)
        for node in graph.nodes:
            if id(node) in absorbed:
                continue
            if node.op == DEQUANTIZE:
                nodes.append(self._signed(node))
            elif node.op == "Transpose" and (turned := self._transposed(node)) is not None:
                nodes.append(turned)
            elif (made := self._linear(node)) is not None:
                *before, linear = made
                follower = readers.get(linear.outputs[0])
                bias = self._following_bias(linear, follower)
                if bias and follower is not None:
                    # the sum stands later, where its bias is known
                    absorbed.add(id(follower))
                    linear = replace(linear, inputs=(*linear.inputs[:2], bias), outputs=follower.outputs)
                nodes += [*before, linear]
            else:
                nodes.append(node)
        return replace(graph, nodes=tuple(nodes))

    # ---- DequantizeLinear ----

    def _signed(self, node: Node) -> Node:
        """Return the node with int8 for stored uint8 and int32 for its zero points; remember it if all it reads is stored."""
        q, scale, zero = (self.constants.get(name) for name in [*node.inputs, "", ""][:3])
        if scale is None or (zero is None and len(node.inputs) > 2 and node.inputs[2]):
            return node
        zeros = torch.zeros_like(scale.tensor, dtype=torch.int32) if zero is None else zero.tensor.to(torch.int32)
        name = node.inputs[0]
        if q is not None and q.tensor.dtype == torch.uint8 and q.tensor.numel():
            shift = 8 if max(int(q.tensor.max()), int(zeros.max()) if zeros.numel() else 0) < 16 else 128
            name = self._add(f"{name}.signed", (q.tensor.to(torch.int16) - shift).to(torch.int8))
            zeros = zeros - shift
        inputs = [name, node.inputs[1]]
        if bool(zeros.any()) or zeros.numel() != scale.tensor.numel():  # what does not fit is refused later
            kind = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2] else node.inputs[1]
            inputs.append(self._add(f"{kind}.{name}.zero_point", zeros))
        made = replace(node, inputs=tuple(inputs))
        if name in self.constants:
            made = replace(made, attributes={**node.attributes, BITS: _width(self.constants[name].tensor)})
            self.stored[node.outputs[0]] = made
        return made

    def _add(self, name: str, tensor: Tensor) -> str:
        """Store a constant under a name that the file has not taken."""
        while name in self.constants:
            name += "_"
        self.constants[name] = Constant(tensor, name, False)
        return name

    def _turned(self, node: Node, order: list[int], output: str) -> Node | None:
        """Return a DequantizeLinear of stored integers with permuted axes; None where the axes do not fit."""
        q = self.constants[node.inputs[0]].tensor
        axis, block = node.attributes.get("axis", 1), node.attributes.get("block_size", 0)
        if sorted(order) != list(range(q.dim())) or not isinstance(axis, int) or not -q.dim() <= axis < q.dim():
            return None
        inputs = [self._permuted(node.inputs[0], order)]
        for name in node.inputs[1:]:
            grid = self.constants[name].tensor
            if block and grid.dim() != q.dim():
                return None
            inputs.append(self._permuted(name, order) if block else name)
        attributes = {**node.attributes, "axis": order.index(axis % q.dim())}
        return replace(node, name=f"{node.name}^T", inputs=tuple(inputs), outputs=(output,), attributes=attributes)

    def _permuted(self, name: str, order: list[int]) -> str:
        turned = f"{name}^{''.join(map(str, order))}"
        if turned not in self.constants:
            constant = self.constants[name]
            self.constants[turned] = replace(constant, tensor=constant.tensor.permute(order).contiguous(), path=turned)
        return turned

    def _transposed(self, node: Node) -> Node | None:
        source = self.stored.get(node.inputs[0]) if len(node.inputs) == 1 else None
        if source is None:
            return None
        rank = self.constants[source.inputs[0]].tensor.dim()
        given = node.attributes.get("perm")
        order = [item for item in given if isinstance(item, int)] if isinstance(given, tuple) else [*range(rank)][::-1]
        made = self._turned(source, order, node.outputs[0])
        if made is not None:
            self.stored[node.outputs[0]] = made
        return made

    # ---- products ----

    def _linear(self, node: Node) -> list[Node] | None:
        """Return a product with a stored matrix of integers as a linear layer, after the DequantizeLinear that it needs."""
        source = self.stored.get(node.inputs[1]) if len(node.inputs) > 1 else None
        if source is None or self.constants[source.inputs[0]].tensor.dim() != 2:
            return None
        bias: tuple[str, ...] = ()
        is_turned = False
        if node.op == "Gemm":
            attributes = node.attributes
            if attributes.get("transA", 0) or attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
                return None
            bias, is_turned = tuple(name for name in node.inputs[2:3] if name), bool(attributes.get("transB", 0))
            features = self.constants[source.inputs[0]].tensor.shape[0 if is_turned else 1]
            if bias and self._shape(bias[0]) != (features,):
                return None
        elif node.op != "MatMul":
            return None
        if is_turned:
            return [replace(node, op=LINEAR, inputs=(node.inputs[0], node.inputs[1], *bias), attributes={})]
        output = f"{node.inputs[1]}^T@{node.outputs[0]}"
        turned = self._turned(source, [1, 0], output)
        if turned is None:
            return None
        linear = replace(node, op=LINEAR, inputs=(node.inputs[0], output, *bias), attributes={})
        self.stored[output] = turned
        return [turned, linear]

    def _shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of what is stored, as floats or as integers."""
        constant = self.constants.get(self.stored[name].inputs[0] if name in self.stored else name)
        return None if constant is None else tuple(constant.tensor.shape)

    def _following_bias(self, linear: Node, follower: Node | None) -> str:
        """Return the bias that an Add after a product adds, "" if it adds something else."""
        if follower is None or follower.op != "Add" or len(linear.inputs) != 2 or len(follower.inputs) != 2:
            return ""
        others = [name for name in follower.inputs if name != linear.outputs[0]]
        features = self.constants[self.stored[linear.inputs[1]].inputs[0]].tensor.shape[0]
        is_only = len(others) == 1 and self.uses[linear.outputs[0]] == 1
        return others[0] if is_only and self._shape(others[0]) == (features,) else ""


def _width(values: Tensor) -> int:
    is_small = values.dim() > 1 and values.numel() > 0 and int(values.min()) >= -8 and int(values.max()) <= 7
    return 4 if is_small else 8 * values.dtype.itemsize


def lower_dequantized(graph: Graph, constants: dict[str, Constant]) -> Graph:
    """Return the graph with weights of int8 and linear layers; adds to `constants`. Subgraphs stay as they are."""
    uses = Counter(name for node in graph.walk() for name in node.inputs if name)
    uses.update(port.value for port in graph.outputs)
    uses.update(name for node in graph.walk() for inner in node.graphs() for name in inner.captured())
    return _Lowering(constants, uses).graph(graph)
