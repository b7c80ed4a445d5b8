"""Lower one node to simpler operators by torch's own decompositions, for operators that have no converter of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from dsopt.backends.cpu.registry import RefusalError, operator_key
from dsopt.ir import torch_private as private


def decompose(node: fx.Node) -> fx.Graph:
    """Return a functional graph that computes a node: one placeholder for each of `node.all_input_nodes`, in order.

    Raises RefusalError if torch has no simpler form of the operator.
    """
    inputs = list(node.all_input_nodes)

    def call(*values: Any) -> Any:
        given = dict(zip(inputs, values, strict=True))
        args = fx.node.map_arg(node.args, lambda item: given[item])
        kwargs = fx.node.map_arg(node.kwargs, lambda item: given[item])
        return node.target(*args, **kwargs)  # type: ignore[operator]

    recorded = [item.meta["val"] for item in inputs]
    try:
        graph = _traced(call, recorded, private.fake_mode_of(node.graph)).graph
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as problem:
        raise RefusalError(
            "there is no ONNX form of this operator in dsopt, and torch cannot lower it",
            "write it with other operators",
        ) from problem
    graph.eliminate_dead_code()
    if any(each.target == node.target or each.op == "get_attr" for each in graph.nodes):
        raise RefusalError("there is no ONNX form of this operator in dsopt", _nearest(node))
    for each in graph.nodes:
        each.meta["layer"], each.meta["source"] = node.meta.get("layer", ""), node.meta.get("source", "")
    return graph


def _traced(call: Callable[..., Any], values: Sequence[Any], mode: Any) -> fx.GraphModule:
    """Record a call on fake values as operators of which none mutates its arguments."""
    table: Any = torch.export.default_decompositions()
    with private.fake_execution(mode):
        traced = private.make_fx(call, decomposition_table=table)(*values)
        if any(private.schema_mutates(node.target) for node in traced.graph.nodes):
            traced = private.make_fx(torch.func.functionalize(traced))(*values)
    assert isinstance(traced, fx.GraphModule)
    return traced


def _nearest(node: fx.Node) -> str:
    """Return a hint: known operators with a similar name."""
    from difflib import get_close_matches

    from dsopt.backends.cpu.registry import CONVERTERS

    close = get_close_matches(operator_key(node.target), sorted(CONVERTERS), n=2, cutoff=0.7)
    return "similar operators that have one: " + ", ".join(close) if close else "write it with other operators"
