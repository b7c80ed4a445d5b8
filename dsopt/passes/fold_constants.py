"""fold-constants: compute at compile time what depends on stored tensors only."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from dsopt.ir import Program, Rewriter
from dsopt.ir.interpret import argument_values
from dsopt.passes.base import Pass, PassContext

_DSOPT = torch.ops.dsopt
_ROUNDING: frozenset[Any] = frozenset(
    {_DSOPT.dequantize.default, _DSOPT.dequantize_channel.default, _DSOPT.fake_quantize.default}
)


@dataclass(frozen=True)
class FoldConstants(Pass):
    """op(weight, 2) -> a new constant. `growth_bytes`: how much larger than its inputs a result may be, so that none explodes.

    Weights of the user's model are folded too, so run it when training is over. What rounding has made small stays small: integers
    are not turned back into floats, and a weight that is still to be rounded keeps its fake_quantize.
    """

    name: ClassVar[str] = "fold-constants"
    growth_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        if self.growth_bytes < 0:
            raise ValueError("growth_bytes must be 0 or more")

    def run(self, program: Program, rewriter: Rewriter, context: PassContext) -> None:
        """Fold maximal constant subgraphs: only their last values are stored."""
        values = self._constants(program, rewriter)
        for node in list(program.graph.nodes):
            if node.op != "call_function" or node not in values or not isinstance(values[node], Tensor):
                continue
            if any(user not in values for user in node.users):
                stored = rewriter.add_weight(f"folded.{node.name}", values[node], "constant")
                rewriter.replace(node, stored)
        rewriter.erase_dead()

    def _constants(self, program: Program, rewriter: Rewriter) -> dict[fx.Node, Any]:
        values: dict[fx.Node, Any] = {}
        for node in program.graph.nodes:
            stored = program.weight(node)
            if stored is not None:
                values[node] = stored
            elif node.op == "call_function" and self._foldable(node, values):
                args, kwargs = argument_values(node, values)
                with torch.no_grad():
                    result = node.target(*args, **kwargs)
                inputs = sum(_count_bytes(values[item]) for item in node.all_input_nodes)
                if _count_bytes(result) <= inputs + self.growth_bytes:
                    values[node] = result
                else:
                    rewriter.skip(node, f"its {_count_bytes(result)} bytes would replace {inputs}")
        return values

    def _foldable(self, node: fx.Node, values: dict[fx.Node, Any]) -> bool:
        if node.target is operator.getitem:
            return node.args[0] in values
        if node.target in _ROUNDING:
            return False
        if not isinstance(node.target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded in node.target.tags:
            return False
        return isinstance(node.meta["val"], (Tensor, tuple, list)) and all(
            item in values for item in node.all_input_nodes
        )


def _count_bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(_count_bytes(item) for item in value) if isinstance(value, (tuple, list)) else 0
