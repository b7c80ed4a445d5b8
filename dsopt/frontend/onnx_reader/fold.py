"""Compute ahead of time what does not depend on the inputs, and put the branch of an If that is always taken in its place."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dsopt.errors import DsoptError
from dsopt.frontend.onnx_reader.graph import Graph, Node
from dsopt.frontend.onnx_reader.interpreter import Environment, Interpreter
from dsopt.frontend.onnx_reader.names import is_generated
from dsopt.frontend.onnx_reader.problems import UndecidedError, UnsupportedFormError, too_large
from dsopt.frontend.onnx_reader.registry import OPERATORS
from dsopt.frontend.onnx_reader.values import Constant, Known, Value, as_tensor

MAX_RESULT_BYTES = 2**31
"""A few bytes of a file can ask for any number of zeros."""
# Results that are their input in another layout or precision: still the weight of that name.
_RELAYOUTS = frozenset({"Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast"})


@dataclass
class Folder:
    """Folds one model. constants: all known constants by value name, those of subgraphs among them.

    transposed: for a constant that is another one transposed, the other's name.
    """

    constants: dict[str, Constant]
    transposed: dict[str, str]
    uses: Counter[str]

    def fold(self, graph: Graph) -> Graph:
        """Return the graph without the nodes that were computed. Raises ReadError DS0192, DS0193 or DS0196."""
        for name, tensor in graph.constants.items():
            self.constants[name] = Constant(tensor, name, _looks_trained(name, tensor))
        kept: list[Node] = []
        pending = list(reversed(graph.nodes))
        while pending:
            node = pending.pop()
            branch = self._branch(node)
            if branch is not None:
                pending.extend(reversed(branch))
            elif not self._compute(node):
                kept.append(self._with_folded_graphs(node))
        return replace(graph, nodes=tuple(kept), constants={})

    def _branch(self, node: Node) -> list[Node] | None:
        """Return the nodes of the branch that an If with a constant condition takes, else None."""
        if node.op != "If" or not node.inputs or node.inputs[0] not in self.constants:
            return None
        condition = self.constants[node.inputs[0]].tensor
        graph = node.attributes.get("then_branch" if condition.numel() and bool(condition.any()) else "else_branch")
        if not isinstance(graph, Graph) or len(graph.outputs) < len(node.outputs):
            return None
        for name, tensor in graph.constants.items():
            self.constants[name] = Constant(tensor, name, _looks_trained(name, tensor))
        pairs = zip(graph.outputs, node.outputs, strict=False)
        copies = [
            Node("Identity", f"{node.name}/{out}", (port.value,), (out,), {}, node.version, node.layer)
            for port, out in pairs
            if out
        ]
        return [*graph.nodes, *copies]

    def _compute(self, node: Node) -> bool:
        """Compute a node if it reads constants only, and tell whether it was computed."""
        reads = list(node.reads())
        operator = OPERATORS.get(node.op)
        if operator is None or not all(name in self.constants for name in reads):
            return False
        if operator.refuse is not None or node.op.startswith("Sequence") or node.op == "DequantizeLinear":
            return False  # the last keeps stored integers what they are
        environment: Environment = {name: self.constants[name] for name in reads}
        if not operator.needs_numbers and not self._fits(node, environment):
            return False
        try:
            with torch.no_grad():
                results = Interpreter(_stored).compute(node, environment)
        except (DsoptError, UndecidedError, UnsupportedFormError):
            return False  # said again, with all others, when the whole graph is tried
        tensors = {name: _as_real(value) for name, value in results.items()}
        if any(tensor is None for tensor in tensors.values()):
            return False
        sources = [self.constants[name] for name in reads]
        for name, tensor in tensors.items():
            assert tensor is not None
            self.constants[name] = self._named(node, name, tensor, sources)
        return True

    def _named(self, node: Node, name: str, tensor: Tensor, sources: list[Constant]) -> Constant:
        is_weight = tensor.is_floating_point() and any(source.is_weight for source in sources)
        if node.op in _RELAYOUTS and is_weight:
            if node.op == "Transpose" and tensor.dim() == 2 and node.attributes.get("perm", (1, 0)) == (1, 0):
                self.transposed[name] = node.inputs[0]
            if self.uses[node.inputs[0]] == 1:
                return Constant(tensor, sources[0].path, is_weight)
        return Constant(tensor, name, is_weight)

    def _fits(self, node: Node, environment: Environment) -> bool:
        """Try a node on tensors without numbers. Raises ReadError DS0192 if its result is too large."""
        try:
            with torch.no_grad(), torch.device("meta"):
                results = Interpreter(lambda constant: constant.tensor.to("meta")).compute(node, environment)
        except (DsoptError, UndecidedError, UnsupportedFormError):
            return True  # computing it with numbers says what is wrong
        size = sum(value.numel() * value.dtype.itemsize for value in results.values() if isinstance(value, Tensor))
        if size > MAX_RESULT_BYTES:
            why = f"It is the same in every run, and at most {MAX_RESULT_BYTES:,} bytes are computed ahead."
            raise too_large(f"the result of {node.where} takes {size:,} bytes", why=why)
        return True

    def _with_folded_graphs(self, node: Node) -> Node:
        if not any(True for _ in node.graphs()):
            return node
        attributes = dict(node.attributes)
        for name, value in attributes.items():
            if isinstance(value, Graph):
                attributes[name] = self.fold(value)
            elif isinstance(value, tuple):
                attributes[name] = tuple(self.fold(item) if isinstance(item, Graph) else item for item in value)
        return replace(node, attributes=attributes)


def fold(graph: Graph) -> tuple[Graph, dict[str, Constant], dict[str, str]]:
    """Return what is left of a graph, all constants by value name, and which of them is another one transposed.

    Raises ReadError DS0192 if a constant would be too large.
    """
    uses = Counter(name for node in graph.walk() for name in node.inputs if name)
    uses.update(port.value for port in graph.outputs)
    folder = Folder({}, {}, uses)
    return folder.fold(graph), folder.constants, folder.transposed


def _stored(constant: Constant) -> Tensor:
    return constant.tensor


def _as_real(value: Value) -> Tensor | None:
    if isinstance(value, Known):
        return as_tensor(value)
    if isinstance(value, Constant):
        return value.tensor
    return value.contiguous() if isinstance(value, Tensor) else None


def _looks_trained(name: str, tensor: Tensor) -> bool:
    """Tell a weight from a number: exporters store both, and a lone unnamed scalar is a number."""
    if not tensor.is_floating_point():
        return False
    return "." in name or (tensor.dim() > 0 and not (tensor.numel() == 1 and is_generated(name)))
