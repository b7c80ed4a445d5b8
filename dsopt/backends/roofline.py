"""What a program is estimated to take on a machine with caches: a roofline (Williams, Waterman and Patterson 2009) over its operators.

An estimate, for choosing between programs whose code has not been made: the same program gives the same numbers everywhere, which a
measurement does not.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from dsopt.ir import Program
from dsopt.ir.multiply_adds import multiply_adds
from dsopt.ir.torch_private import hint_of, is_operator
from dsopt.passes.memory.arena import lower_bound
from dsopt.passes.memory.liveness import Step, lifetimes


@dataclass(frozen=True)
class Machine:
    """products_per_second: float32 multiply-adds.  bytes_per_second: to and from memory.  dispatch_seconds: of one operator."""

    products_per_second: float
    bytes_per_second: float
    dispatch_seconds: float

    def seconds(self, program: Program) -> float:
        """Return what the operators take one after another, each bound by its products or by its operands and results."""
        total = 0.0
        for node in program.graph.nodes:
            if node.op == "call_function" and not _is_view(node):
                moved = _bytes(node) + sum(_bytes(each) for each in node.all_input_nodes)
                bound = max(multiply_adds(node) / self.products_per_second, moved / self.bytes_per_second)
                total += bound + self.dispatch_seconds
        return total


def ram_bytes(program: Program) -> int:
    """Return the bytes of the weights and of the values that are alive together at the worst step. Views share their operand's."""
    owners: dict[fx.Node, fx.Node] = {}
    steps: list[Step] = []
    sizes: dict[str, int] = {}
    weights = 0
    given: list[str] = []
    for node in program.graph.nodes:
        if node.op == "output":
            continue
        owner = owners[node] = owners[node.all_input_nodes[0]] if _is_view(node) else node
        if program.weight(node) is not None:
            weights += _bytes(node)
        elif owner is node and _bytes(node):
            sizes[node.name] = _bytes(node)
            if node.op == "placeholder":
                given.append(node.name)
        reads = tuple(dict.fromkeys(owners[each].name for each in node.all_input_nodes))
        steps.append(Step(reads, (node.name,) if owner is node and node.op == "call_function" else ()))
    after = [owners[each].name for each in program.output_node.all_input_nodes]
    return weights + lower_bound(lifetimes(steps, sizes, given, [name for name in after if name in sizes]))


def _is_view(node: fx.Node) -> bool:
    """Tell whether a node gives a part of its first operand, and no new memory."""
    if node.target is operator.getitem:
        return True
    if not is_operator(node.target) or not node.all_input_nodes:
        return False
    returned: Iterable[Any] = node.target._schema.returns  # type: ignore[union-attr]
    return all(each.alias_info is not None and not each.alias_info.is_write for each in returned)


def _bytes(node: fx.Node) -> int:
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else [value]
    total = 0
    for each in values:
        if isinstance(each, Tensor):
            count = 1
            for size in each.shape:
                count *= hint_of(size)
            total += count * each.element_size()
    return total
