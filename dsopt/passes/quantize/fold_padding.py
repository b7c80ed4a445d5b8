"""fold-padding: a pad before an integer convolution becomes padding of the convolution, which needs no copy of the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from dsopt.ir import Program, Rewriter
from dsopt.passes.base import Pass, PassContext

_CONVOLUTION = torch.ops.dsopt.q_conv.default
_STRIDE, _PADDING, _TRANSPOSED, _X_ZERO = 9, 10, 12, 15
"""Places of arguments of q_conv."""


@dataclass(frozen=True)
class FoldPadding(Pass):
    """q_conv(pad(x, value=zero point), padding=p) -> q_conv(x, padding=p + pad). Padding may differ before and after a dim."""

    name: ClassVar[str] = "fold-padding"

    def run(self, program: Program, rewriter: Rewriter, context: PassContext) -> None:
        """Fold each pad into those of its users that are convolutions."""
        for node in list(program.graph.nodes):
            if node.target is not _CONVOLUTION or node.args[_TRANSPOSED]:
                continue
            folded = _folded(program, node)
            if folded is None:
                continue
            source, padding = folded
            arguments = list(node.args)
            arguments[0], arguments[_PADDING] = source, padding
            rewriter.replace(node, rewriter.call(_CONVOLUTION, *arguments, like=node))
        rewriter.erase_dead()


def _folded(program: Program, node: fx.Node) -> tuple[fx.Node, list[int]] | None:
    """Return the image without its pad and the padding of the convolution with it; None where there is no pad of zeros."""
    pad: Any = node.args[0]
    if pad.target is not torch.ops.aten.constant_pad_nd.default:
        return None
    source, amounts, value = pad.args[0], list(pad.args[1]), pad.args[2] if len(pad.args) > 2 else 0
    rank = len(node.args[_STRIDE])  # type: ignore[arg-type]
    if value != node.args[_X_ZERO] or len(amounts) > 2 * rank or min(amounts) < 0:
        return None
    amounts += [0] * (2 * rank - len(amounts))
    padding: Any = list(node.args[_PADDING])  # type: ignore[arg-type]
    before = [padding[dim] + amounts[2 * (rank - 1 - dim)] for dim in range(rank)]
    after = [padding[dim - rank] + amounts[2 * (rank - 1 - dim) + 1] for dim in range(rank)]
    return source, before if before == after else before + after
