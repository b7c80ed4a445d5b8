"""Take channels out of a program: smaller weights, and sizes in arguments written anew, all at once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, fx

from dsopt.ir import Rewriter
from dsopt.ir.torch_private import is_operator, named_arguments
from dsopt.passes.prune.axes import Expr, Length, is_fixed, length
from dsopt.passes.prune.channels import Channels, Keep
from dsopt.passes.prune.inference import AxisInference
from dsopt.passes.prune.rules import RESIZES, packet_name
from dsopt.passes.prune.rules.base import Call


class Kept:
    """What is left of each dimension when some channels go."""

    def __init__(self, channels: Channels, keep: Keep) -> None:
        self._channels, self._keep = channels, keep
        self._counts = channels.kept_counts(keep)

    @property
    def inference(self) -> AxisInference:
        """Return the axis expressions of the program."""
        return self._channels.inference

    def kept(self, expr: Expr) -> Length:
        """Return how many indices of a dimension are left; a dimension of varying size stays what it is."""
        if is_fixed(expr):
            return length(expr)
        extent = self._channels.extent(expr)
        return extent.fixed * int(np.prod(self._counts[list(extent.rows)]))

    def is_cut(self, expr: Expr) -> bool:
        """Tell whether a dimension has lost an index."""
        rows = self._channels.extent(expr).rows
        return any(self._counts[row] < len(self._channels.rows[row]) for row in rows)

    def mask(self, expr: Expr) -> Keep:
        """Tell of each index of a dimension whether it is left."""
        return self._channels.mask(expr, self._keep)


def shrink(channels: Channels, keep: Keep, rewriter: Rewriter) -> None:
    """Take all channels out that are not to be kept."""
    kept, program = Kept(channels, keep), rewriter.program
    weights: dict[str, Tensor] = {}
    pairs = zip(program.placeholders, program.signature.weights, strict=False)
    for node, spec in pairs:
        before = program.weights[spec.name]
        after = _cut(before, kept, channels.inference.axes(node))
        if after is not before:
            weights[spec.name] = after
    calls: dict[fx.Node, Call] = {}
    for node in program.graph.nodes:
        resize = RESIZES.get(packet_name(node)) if is_operator(node.target) else None
        if resize is None or node in channels.inference.unknown:
            continue  # what an unknown operator touches is kept, and so are its arguments
        call = resize(kept, node, named_arguments(node))
        if call is not None:
            calls[node] = call
    rewriter.resize(weights, calls)


def _cut(weight: Tensor, kept: Kept, axes: tuple[Expr, ...]) -> Tensor:
    for dim, expr in enumerate(axes):
        if kept.is_cut(expr):
            weight = weight.index_select(dim, torch.from_numpy(np.flatnonzero(kept.mask(expr))))
    return weight
