"""Carry the names of ONNX nodes through torch.export, where a program keeps the user's line of source."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from torch.fx.traceback import annotate, preserve_node_meta

from dsopt.frontend.onnx_reader.graph import Node
from dsopt.ir import Program

_FACT = "onnx_node"


@contextmanager
def keeping_node_names() -> Iterator[None]:
    """Let what `computing` says reach the graph; around torch.export."""
    with preserve_node_meta():
        yield


def computing(node: Node) -> AbstractContextManager[None]:
    """Mark the operators that are traced inside as made for an ONNX node."""
    return annotate({"dsopt": {_FACT: node.where}})


def name_sources(program: Program) -> Program:
    """Replace the source of each node, which would be a line of the reader, by the ONNX node that it was read from."""
    for node in program.graph.nodes:
        node.meta["source"] = str(program.facts(node).pop(_FACT, ""))
    return program
