"""Evaluate a program's graph: on tensors, or on fake tensors to give every node its shape and dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from dsopt.ir import torch_private as private

if TYPE_CHECKING:
    from dsopt.ir.program import Program


def argument_values(node: fx.Node, values: Mapping[fx.Node, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a node's args and kwargs with each node in them replaced by its value."""
    args = fx.node.map_arg(node.args, lambda item: values[item])
    kwargs = fx.node.map_arg(node.kwargs, lambda item: values[item])
    return tuple(args), dict(kwargs)


def evaluate(
    graph: fx.Graph,
    placeholders: Mapping[fx.Node, Any],
    watch: Callable[[fx.Node, Any], None] | None = None,
    substitutes: Mapping[Any, Callable[..., Any]] | None = None,
) -> tuple[Any, ...]:
    """Run a graph on tensors and return what its output node returns, freeing each value after its last use.

    watch: is shown each node, placeholders too, with its value.  substitutes: functions to call in the place of nodes or operators.
    """
    values: dict[fx.Node, Any] = dict(placeholders)
    remaining = {node: len(node.users) for node in graph.nodes}
    for node in graph.nodes:
        if node.op == "placeholder" and watch is not None and node in values:
            watch(node, values[node])
        if node.op == "call_function":
            args, kwargs = argument_values(node, values)
            function: Any = node.target
            if substitutes is not None:
                function = substitutes.get(node) or substitutes.get(node.target, node.target)
            values[node] = function(*args, **kwargs)
            if watch is not None:
                watch(node, values[node])
            for used in node.all_input_nodes:
                remaining[used] -= 1
                if remaining[used] == 0:
                    values.pop(used, None)
        elif node.op == "output":
            return tuple(argument_values(node, values)[0][0])
    raise AssertionError("a graph has an output node")


def evaluate_in_turn(
    program: Program,
    batches: Iterable[tuple[Tensor, ...]],
    watch: Callable[[fx.Node, Any], None] | None = None,
    substitutes: Mapping[Any, Callable[..., Any]] | None = None,
) -> None:
    """Run a program on batches of its inputs, without gradients, states carried from one to the next. See `evaluate`."""
    names, states = [state.name for state in program.signature.states], None
    with torch.no_grad():
        for batch in batches:
            results = evaluate(program.graph, program.bind(batch, states), watch, substitutes)
            states = dict(zip(names, results[: len(names)], strict=True))


def evaluate_all(graph: fx.Graph, placeholders: Mapping[fx.Node, Any]) -> dict[fx.Node, Any]:
    """Run a graph on tensors and return every node's value: for bisection and calibration."""
    values: dict[fx.Node, Any] = dict(placeholders)
    for node in graph.nodes:
        if node.op == "call_function":
            args, kwargs = argument_values(node, values)
            values[node] = node.target(*args, **kwargs)
    return values


def infer(node: fx.Node) -> Any:
    """Return the fake value (tensors, sizes, tuples of them) that a call_function node gives for its arguments' recorded ones."""
    mode = private.fake_mode_of(node.graph)
    recorded = {item: item.meta["val"] for item in node.all_input_nodes}
    args, kwargs = argument_values(node, recorded)
    with private.fake_execution(mode):
        return node.target(*args, **kwargs)  # type: ignore[operator]


def constant_like(value: Any) -> bool:
    """Tell whether a value is a plain number, string or None, and not a tensor or a varying size."""
    return not isinstance(value, Tensor) and (value is None or isinstance(value, (bool, int, float, str)))
