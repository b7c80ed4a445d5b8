"""Find subgraphs that equal a pattern, which is written as a function of operators."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import fx

if TYPE_CHECKING:
    from dsopt.ir.program import Program


@dataclass(frozen=True)
class Match:
    """One place that equals the pattern: its last node, all its nodes, and what each parameter of the pattern stands for."""

    root: fx.Node
    nodes: tuple[fx.Node, ...]
    bindings: Mapping[str, Any]

    def __getitem__(self, parameter: str) -> Any:
        return self.bindings[parameter]


def find(program: Program, pattern: Callable[..., Any]) -> Iterator[Match]:
    """Yield each subgraph equal to `pattern`, a function of torch.ops calls, last match first; matches do not overlap.

    A parameter of the pattern stands for any node or any plain argument, the same one wherever it occurs. Nodes inside a match
    are used nowhere else, so that a match can be replaced as a whole.
    """
    traced = _trace(pattern)
    root: Any = traced.output_node().args[0]
    taken: set[fx.Node] = set()
    for node in reversed(list(program.graph.nodes)):
        if node.op != "call_function" or node in taken:
            continue
        bindings: dict[str, Any] = {}
        nodes: dict[fx.Node, fx.Node] = {}
        if (
            _matches(root, node, bindings, nodes)
            and _is_closed(node, set(nodes.values()))
            and not taken & set(nodes.values())
        ):
            taken |= set(nodes.values())
            yield Match(node, tuple(nodes.values()), bindings)


class _PatternTracer(fx.Tracer):
    """Traces a plain function; operators become call_function nodes."""


def _trace(pattern: Callable[..., Any]) -> fx.Graph:
    names = list(inspect.signature(pattern).parameters)
    return _PatternTracer().trace(pattern, concrete_args=None) if names else fx.Graph()


def _matches(wanted: Any, found: Any, bindings: dict[str, Any], nodes: dict[fx.Node, fx.Node]) -> bool:
    if isinstance(wanted, fx.Node) and wanted.op == "placeholder":
        name = str(wanted.target)
        if name in bindings:
            return _same(bindings[name], found)
        bindings[name] = found
        return True
    if isinstance(wanted, fx.Node):
        if wanted in nodes:
            return nodes[wanted] is found
        if not isinstance(found, fx.Node) or found.op != "call_function" or found.target is not wanted.target:
            return False
        if len(wanted.args) != len(found.args) or set(wanted.kwargs) != set(found.kwargs):
            return False
        nodes[wanted] = found
        pairs = [
            *zip(wanted.args, found.args, strict=True),
            *((wanted.kwargs[key], found.kwargs[key]) for key in wanted.kwargs),
        ]
        return all(_matches(left, right, bindings, nodes) for left, right in pairs)
    if isinstance(wanted, (tuple, list)):
        if not isinstance(found, (tuple, list)) or len(wanted) != len(found):
            return False
        return all(_matches(left, right, bindings, nodes) for left, right in zip(wanted, found, strict=True))
    return _same(wanted, found)


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, fx.Node) or isinstance(right, fx.Node):
        return left is right
    return type(left) is type(right) and bool(left == right)


def _is_closed(root: fx.Node, nodes: set[fx.Node]) -> bool:
    return all(node is root or all(user in nodes for user in node.users) for node in nodes)
