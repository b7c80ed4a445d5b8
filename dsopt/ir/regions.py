"""Dissolve regions that matter to training only: torch exports `with torch.no_grad():` as an operator around a subgraph.

wrap_with_set_grad_enabled(False, body, x)[0] -> the operators of body, on x
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from dsopt.ir import torch_private as private


def inline_regions(graph: fx.Graph, root: nn.Module) -> None:
    """Replace each region of `graph` that only switches gradients, or an autocast that does nothing here, by its operators.

    root: the module that holds the bodies under their names.  Other higher-order operators are left as they are.
    """
    for node in list(graph.nodes):
        call = _region(node)
        if call is None:
            continue
        body, operands = call
        inner = getattr(root, str(body.target))
        copied = private.copy_graph(inner.graph)
        inline_regions(copied, inner)
        with graph.inserting_before(node):
            results = _copy_body(graph, copied, operands)
        for user in list(node.users):
            if user.target is operator.getitem:
                user.replace_all_uses_with(results[user.args[1]])
                graph.erase_node(user)
        if node.users:
            node.replace_all_uses_with(results[0])
        graph.erase_node(node)
        if not body.users:
            graph.erase_node(body)


def _region(node: fx.Node) -> tuple[fx.Node, tuple[Any, ...]] | None:
    """Return the body and the operands of a region that may be dissolved."""
    higher_order = torch.ops.higher_order
    if node.op != "call_function":
        return None
    if node.target is higher_order.wrap_with_set_grad_enabled:
        body, operands = node.args[1], node.args[2:]
    elif node.target is higher_order.wrap_with_autocast and (node.args[0] != "cpu" or not node.args[2]):
        body, operands = node.args[4], node.args[5:]
    else:
        return None
    assert isinstance(body, fx.Node)
    return body, operands


def _copy_body(graph: fx.Graph, body: fx.Graph, operands: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copy the operators of a body to where the graph is being written, and return its results."""
    given = iter(operands)
    copies: dict[fx.Node, Any] = {}
    for node in body.nodes:
        if node.op == "placeholder":
            copies[node] = next(given)
        elif node.op == "output":
            results = fx.map_arg(node.args[0], lambda item: copies[item])
            return tuple(results) if isinstance(results, (tuple, list)) else (results,)
        else:
            copies[node] = graph.node_copy(node, lambda item: copies[item])
    raise AssertionError("a graph without an output")
