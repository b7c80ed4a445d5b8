"""Run the nodes of a graph in order, one function of the registry each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dsopt.errors import DsoptError, ReadError
from dsopt.frontend.onnx_reader.call import Call
from dsopt.frontend.onnx_reader.graph import Graph, Node
from dsopt.frontend.onnx_reader.problems import (
    EXPORT_AGAIN,
    MalformedError,
    Refusal,
    UndecidedError,
    UnsupportedFormError,
    inconsistent,
    not_supported,
)
from dsopt.frontend.onnx_reader.registry import OPERATORS
from dsopt.frontend.onnx_reader.values import MAX_KNOWN, Constant, Known, Value

Environment = dict[str, Value]
Enter = Callable[[Node, Callable[[], Any]], Any]
"""Calls a function in the module that stands for the node's layer."""

# What torch and Python raise for shapes, dtypes and numbers that do not fit an operator.
_MISFITS = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    MemoryError,
    MalformedError,
)


class Interpreter:
    """Computes graphs. fetch: the tensor of a constant; enter: where each node is computed."""

    def __init__(self, fetch: Callable[[Constant], Tensor], enter: Enter | None = None) -> None:
        self._fetch, self._enter = fetch, enter

    def run(self, graph: Graph, environment: Environment) -> list[Value]:
        """Compute a graph in an environment that holds its inputs and constants, and return its outputs.

        Raises ReadError DS0193 or DS0196, UnsupportedOpError DS0198 naming every node that is not supported.
        """
        refused: list[Refusal] = []
        for node in graph.nodes:
            if refused and any(name not in environment for name in node.reads()):
                continue
            try:
                environment.update(self.compute(node, environment))
            except UnsupportedFormError as error:
                refused.append((node.where, error.what, error.nearest))
        if refused:
            raise not_supported(refused)
        missing = [port.name for port in graph.outputs if port.value not in environment]
        if missing:
            raise inconsistent(f"output {missing[0]!r} is never computed")
        return [environment[port.value] for port in graph.outputs]

    def compute(self, node: Node, environment: Mapping[str, Value]) -> Environment:
        """Return the outputs of one node by name.

        Raises ReadError DS0196 if its inputs do not fit it, UnsupportedFormError for a use that is not supported.
        """

        def run_graph(graph: Graph, arguments: Sequence[Value]) -> list[Value]:
            if len(arguments) != len(graph.inputs):
                raise MalformedError(f"a subgraph takes {len(graph.inputs)} values and gets {len(arguments)}")
            inner: Environment = dict(environment)
            inner.update(zip((port.value for port in graph.inputs), arguments, strict=True))
            return self.run(graph, inner)

        call = Call(node, [environment.get(name) if name else None for name in node.inputs], self._fetch, run_graph)
        try:
            results = self._results(node, call)
        except (DsoptError, UndecidedError, UnsupportedFormError):
            raise
        except _MISFITS as error:
            if "not implemented for" in str(error):  # torch has few operators for unsigned integers above 8 bits
                raise UnsupportedFormError("this element type", "float32 or int64") from error
            what = f"{node.where} cannot be computed from its inputs"
            raise ReadError("DS0196", what, where=node.where, why=_reason(error, call), fix=EXPORT_AGAIN) from error
        if len(results) < sum(map(bool, node.outputs)):
            raise inconsistent(f"{node.where} has {len(node.outputs)} outputs; the operator gives {len(results)}")
        return {name: value for name, value in zip(node.outputs, results, strict=False) if name}

    def _results(self, node: Node, call: Call) -> Sequence[Value]:
        operator = OPERATORS[node.op]
        result: Any = None
        if operator.run_known is not None and _all_known(call.values):
            result = operator.run_known(call)
            if isinstance(result, Known) and result.array.size > MAX_KNOWN:
                result = None  # too many for Python; tensors do it
        if result is None:
            if self._enter is None or not node.layer:
                result = operator.run(call)
            else:
                result = self._enter(node, lambda: operator.run(call))
        return result if isinstance(result, tuple) else (result,)


def _all_known(values: Sequence[Value]) -> bool:
    has_known = False
    for value in values:
        if isinstance(value, Known):
            has_known = True
        elif isinstance(value, Constant):
            if value.numbers is None or value.is_weight:
                return False
        elif value is not None:
            return False
    return has_known


def _reason(error: BaseException, call: Call) -> str:
    shapes = ", ".join(_describe(value) for value in call.values)
    text = str(error).strip().split("\n")[0][:300] or type(error).__name__
    return f"{text} (inputs: {shapes})"


def _describe(value: Value) -> str:
    if isinstance(value, Constant):
        value = value.tensor
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}[{', '.join(str(size) for size in value.shape)}]"
    if isinstance(value, Known):
        return f"numbers {str(value.array.tolist())[:60]}"
    return "none" if value is None else "a sequence"
