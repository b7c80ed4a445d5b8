"""Make an exported program functional: no operator writes into a tensor that another one reads.

Most in-place operators of real models (`relu_`, `add_`) act on a value that nobody else looks at; they are renamed to their
functional twins, which keeps dropout and batch normalisation as the user wrote them. Writes through views, and writes to
buffers, go through torch's own functionalisation without any decomposition; its `select_scatter` and `slice_scatter` remain.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from dsopt.ir import torch_private as private
from dsopt.ir.regions import inline_regions


def functional_graph(exported: ExportedProgram) -> tuple[ExportedProgram, fx.Graph]:
    """Return an exported program and a graph equal to its own without mutating operators; the one given is left as it is."""
    graph = private.copy_graph(exported.graph)
    inline_regions(graph, exported.graph_module)
    for node in list(graph.nodes):
        if private.schema_mutates(node.target):
            _rename(node)
    if not any(private.schema_mutates(node.target) for node in graph.nodes):
        return exported, graph
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about its own internals here
        functional = exported.run_decompositions({})
    graph = private.copy_graph(functional.graph)
    inline_regions(graph, functional.graph_module)
    return functional, graph


def _rename(node: fx.Node) -> None:
    """relu_(x) -> relu(x), where x is no view, no placeholder and has no later user."""
    written = node.args[0] if node.args else None
    twin = _functional_twin(node.target)
    if twin is None or not isinstance(written, fx.Node) or not _is_private(written, node):
        return
    node.target = twin


def _functional_twin(op: Any) -> Any:
    """aten.relu_.default -> aten.relu.default; None where the names or the arguments differ."""
    namespace, packet, overload = str(op).split(".")
    if namespace != "aten" or not packet.endswith("_"):
        return None
    functional = getattr(getattr(torch.ops.aten, packet[:-1], None), overload, None)
    if functional is None:
        return None
    ours, theirs = functional._schema.arguments, op._schema.arguments
    same = [item.name for item in ours[1:]] == [
        item.name for item in theirs[1:]
    ]  # dropout names its first one otherwise
    return functional if same else None


def _is_private(value: fx.Node, writer: fx.Node) -> bool:
    """Tell whether nobody can see a write into `value` but the users of the writer's result.

    A view is private if what it looks at is, and has no other reader.
    """
    if value.op != "call_function" or "getitem" in str(value.target):
        return False
    if private.aliases_input(value.target):
        sources = value.all_input_nodes
        if len(sources) != 1 or len(sources[0].users) != 1 or not _is_private(sources[0], value):
            return False
    later = False
    for node in value.graph.nodes:
        if node is writer:
            later = True
        elif node in value.users and (later or private.aliases_input(node.target) or node.op == "output"):
            return False
    return True
