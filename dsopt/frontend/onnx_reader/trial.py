"""Find out before tracing whether a graph can be computed: every operator known, and its shapes consistent."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import torch

from dsopt.errors import DsoptError
from dsopt.frontend.onnx_reader.call import Call
from dsopt.frontend.onnx_reader.graph import Graph, Node, Port
from dsopt.frontend.onnx_reader.module import OnnxModule, meta_state
from dsopt.frontend.onnx_reader.problems import MalformedError, Refusal, UndecidedError, not_supported
from dsopt.frontend.onnx_reader.registry import INTERNAL, OPERATORS, supported_operators
from dsopt.frontend.onnx_reader.values import Constant, Value


def check_operators(graph: Graph, refused: Sequence[Refusal], label: str) -> None:
    """Raise UnsupportedOpError DS0198 that names every node which is not supported, `refused` first."""
    found = list(refused)
    for node in graph.walk():
        operator = OPERATORS.get(node.op)
        if operator is None or node.op.startswith(INTERNAL):
            found.append((node.where, f"operator {node.op}", _nearest(node)))
        elif operator.refuse is not None:
            try:
                refusal = operator.refuse(Call(node, [None] * len(node.inputs), _nothing, _no_graph))
            except MalformedError as error:
                refusal = str(error), "an attribute of the type that the operator declares"
            if refusal is not None:
                found.append((node.where, *refusal))
    if found:
        raise not_supported(found, label)


def try_shapes(module: OnnxModule, ports: Sequence[Port], shapes: Sequence[tuple[int, ...]]) -> DsoptError | None:
    """Compute the module's shapes for inputs of `shapes`, without numbers; return what was wrong, if anything.

    A model whose shapes depend on its numbers is taken to be right as far as it can be followed.
    """
    inputs = [torch.empty(shape, dtype=port.dtype, device="meta") for port, shape in zip(ports, shapes, strict=True)]
    try:
        with torch.no_grad(), torch.device("meta"):
            torch.func.functional_call(module, meta_state(module), tuple(inputs))
    except UndecidedError:
        return None
    except DsoptError as error:
        return None if isinstance(error.__cause__, NotImplementedError) else error
    return None


def _nearest(node: Node) -> str:
    close = difflib.get_close_matches(node.op, supported_operators(), 1, 0.7)
    return close[0] if close else ""


def _nothing(_: Constant) -> torch.Tensor:
    raise MalformedError("it depends on an input")


def _no_graph(_: Graph, __: Sequence[Value]) -> list[Value]:
    raise MalformedError("it depends on an input")
