"""bias-correction: take from each bias what rounding adds to a layer's result on average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from dsopt.ir import Program, Rewriter
from dsopt.passes.base import Pass, PassContext
from dsopt.passes.quantize.layer import Layer, layer_of
from dsopt.passes.quantize.lockstep import Lockstep, refuse_infinite, refuse_unprepared
from dsopt.passes.quantize.reference import has_rounded_weight, store_bias, unstored


@dataclass(frozen=True)
class BiasCorrection(Pass):
    """conv(x', w', b) -> conv(x', w', b - mean(conv(x', w', b) - conv(x, w, b))), where x' and w' are x and w rounded.

    The mean of each channel is taken over the calibration data, layer after layer, so that each sees the corrections of those
    before it (Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction", section 4.2, measured
    instead of derived). Run it between quantize-prepare and quantize-convert. A layer without a bias gets one.
    adaptive-rounding fits biases itself, behind the ReLU, which means before it undo a little; this is for what has no time for that.
    """

    name: ClassVar[str] = "bias-correction"

    def run(self, program: Program, rewriter: Rewriter, context: PassContext) -> None:
        """Walk the graph once."""
        refuse_unprepared(program, context, self.name)
        lockstep = Lockstep(program, context)

        def visit(node: fx.Node) -> None:
            layer = layer_of(program, node)
            if layer is None or not layer.is_rounded:
                if has_rounded_weight(program, node):
                    rewriter.skip(node, "only biases of convolutions and linear layers are corrected")
                return
            why = unstored(program, layer)
            if why:
                rewriter.skip(node, why)
                return
            error = _mean_error(layer, lockstep.real(node), lockstep.rounded(node))
            refuse_infinite(program, node, error)
            bias = None if layer.bias is None else program.weight(layer.bias)
            store_bias(program, rewriter, layer, (-error if bias is None else bias.detach() - error).to(torch.float32))
            rewriter.changes.append(f"%{node.name} bias corrected by up to {float(error.abs().amax()):.3g}")

        lockstep.walk(visit, "correcting biases")


def _mean_error(layer: Layer, real: list[Tensor], rounded: list[Tensor]) -> Tensor:
    """Return the mean of rounded - real of each channel, over all else."""
    axis = layer.channel_axis
    channels = real[0].shape[axis]
    total, count = torch.zeros(channels, dtype=torch.float64), 0
    for a, b in zip(real, rounded, strict=True):
        error = (b.double() - a.double()).movedim(axis, 0).reshape(channels, -1)
        total, count = total + error.sum(1), count + error.shape[1]
    return total / max(count, 1)
