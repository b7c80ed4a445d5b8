"""fuse-residual: an integer sum with a convolution becomes part of the convolution's store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from dsopt.ir import Program, Rewriter
from dsopt.passes.base import Pass, PassContext

_CONVOLUTION = torch.ops.dsopt.q_conv.default
_TRANSPOSED, _GROUPS, _ZERO, _BITS = 12, 14, 16, 19
"""Places of arguments of q_conv."""


@dataclass(frozen=True)
class FuseResidual(Pass):
    """q_add(q_conv(x), r) -> q_conv_add(x, r), for a convolution over all channels that nothing else reads."""

    name: ClassVar[str] = "fuse-residual"

    def run(self, program: Program, rewriter: Rewriter, context: PassContext) -> None:
        """Fuse each sum with the convolution that ran last of its two operands."""
        order = {node: number for number, node in enumerate(program.graph.nodes)}
        for node in list(program.graph.nodes):
            if node.target is not torch.ops.dsopt.q_add.default or node.args[-1] != 8:
                continue
            a, b, *rest = node.args
            (a_zero, b_zero, a_factor, b_factor), tail = rest[:4], rest[4:-1]
            choices = [(a, a_zero, b, b_zero, a_factor, b_factor), (b, b_zero, a, a_zero, b_factor, a_factor)]
            for conv, own_zero, residual, zero, *factors in sorted(choices, key=lambda each: -order.get(each[0], -1)):
                if _fits(program, conv, own_zero, residual, node):
                    fused = rewriter.call(
                        torch.ops.dsopt.q_conv_add.default, *conv.args, residual, zero, *factors, *tail, like=node
                    )
                    for key in ("layer", "source"):
                        fused.meta[key] = conv.meta.get(key, "")
                    rewriter.replace(node, fused)
                    break
        rewriter.erase_dead()


def _fits(program: Program, conv: Any, zero: int, residual: Any, node: fx.Node) -> bool:
    """Return whether the convolution can add the residual to its result, which stands for 0 where it is `zero`."""
    if conv.target is not _CONVOLUTION or len(conv.users) != 1 or conv is residual:
        return False
    is_plain = (
        conv.args[_ZERO] == zero and not conv.args[_TRANSPOSED] and conv.args[_GROUPS] == 1 and conv.args[_BITS] == 8
    )
    same = program.shape(conv) == program.shape(residual) == program.shape(node)
    return is_plain and same and program.dtype(residual) == torch.int8
