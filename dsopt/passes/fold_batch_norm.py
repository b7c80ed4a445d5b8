"""fold-batch-norm: batch normalisation after a convolution or a linear layer becomes part of its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from dsopt.errors import PassError
from dsopt.ir import Program, Rewriter
from dsopt.passes.base import Pass, PassContext

_ATEN = torch.ops.aten
_CONVOLUTIONS = {
    _ATEN.conv1d.default,
    _ATEN.conv2d.default,
    _ATEN.conv3d.default,
    _ATEN.conv1d.padding,
    _ATEN.conv2d.padding,
    _ATEN.conv3d.padding,
}
_TRANSPOSED = {_ATEN.conv_transpose1d.default, _ATEN.conv_transpose2d.input, _ATEN.conv_transpose3d.input}
_FAKE = torch.ops.dsopt.fake_quantize.default
_FOLDABLE = {*_CONVOLUTIONS, *_TRANSPOSED, _ATEN.linear.default}


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """batch_norm(conv(x, w, b), g, h, mean, var) -> conv(x, w s, (b - mean) s + h) with s = g / sqrt(var + eps) per channel.

    batch_norm(conv(x, fake_quantize(w, t, 0)), ...) -> conv(x, fake_quantize(w s, t |s|, 0), ...)

    Exact but for the rounding of the new weights, which are computed in float64 (Jacob et al. 2018, section 3.2). Where training has
    rounded a weight to a symmetric grid, the grid of each channel is scaled with it, and its integers stay what they were.
    """

    name: ClassVar[str] = "fold-batch-norm"

    def run(self, program: Program, rewriter: Rewriter, context: PassContext) -> None:
        """Fold every batch_norm in inference mode whose producer is a convolution or linear layer that feeds nothing else."""
        for node in list(program.graph.nodes):
            if node.op == "call_function" and node.target is _ATEN.batch_norm.default:
                why = self._refusal(program, node)
                if why:
                    rewriter.skip(node, why)
                else:
                    self._fold(program, rewriter, node)

    def _refusal(self, program: Program, node: fx.Node) -> str:
        producer = node.args[0]
        if node.args[5]:
            return "it is in training mode"
        if node.args[3] is None or node.args[4] is None:
            return "it has no running statistics"
        if not isinstance(producer, fx.Node) or producer.target not in _FOLDABLE:
            return "what it normalises is no convolution or linear layer"
        if len(producer.users) > 1:
            return f"%{producer.name} is also used without normalisation"
        if producer.target is _ATEN.linear.default and producer.meta["val"].dim() != 2:
            return "it normalises axis 1, and the features of the linear layer are on another axis"
        weight: Any = producer.args[1]
        if isinstance(weight, fx.Node) and weight.target is _FAKE:
            if len(weight.users) > 1:
                return "its rounded weight is shared with another layer"
            if weight.args[5] != -weight.args[6] or weight.args[7]:  # type: ignore[operator]
                return "the grid of its weight cannot be scaled channel by channel"
            weight = weight.args[0]
        stored = [weight, *producer.args[2:3], *node.args[1:5]]
        if any(item is not None and program.weight(item) is None for item in stored):
            return "its weights are computed, not stored"
        return ""

    def _fold(self, program: Program, rewriter: Rewriter, node: fx.Node) -> None:
        producer = node.args[0]
        assert isinstance(producer, fx.Node)
        rounded: Any = producer.args[1]
        weight_node: Any = rounded.args[0] if rounded.target is _FAKE else rounded
        bias_node = producer.args[2] if len(producer.args) > 2 else None
        weight, gamma, beta, mean, variance = (
            _double(program, item) for item in (weight_node, node.args[1], node.args[2], node.args[3], node.args[4])
        )
        assert weight is not None
        assert mean is not None
        assert variance is not None
        scale = torch.rsqrt(variance + float(node.args[7]))  # type: ignore[arg-type]
        scale = scale if gamma is None else scale * gamma
        bias = _double(program, bias_node)
        shift = ((0 if bias is None else bias) - mean) * scale + (0 if beta is None else beta)
        dtype = program.dtype(weight_node)
        layer = program.layer(producer) or str(program.weight_name(weight_node)).rpartition(".")[0]
        new_weight = rewriter.add_weight(f"{layer}.weight".lstrip("."), _scaled(weight, scale, producer).to(dtype))
        if rounded.target is _FAKE:
            new_weight = _scaled_rounding(program, rewriter, rounded, new_weight, scale, producer, node)
        new_bias = rewriter.add_weight(f"{layer}.bias".lstrip("."), shift.to(dtype))
        rest = producer.args[3:]
        operation: Any = producer.target
        folded = rewriter.call(operation, producer.args[0], new_weight, new_bias, *rest, like=node, **producer.kwargs)
        folded.meta["layer"], folded.meta["source"] = program.layer(producer), program.source(producer)
        rewriter.replace(node, folded)


def _scaled_rounding(
    program: Program, rewriter: Rewriter, rounded: fx.Node, weight: fx.Node, scale: Tensor, producer: fx.Node, like: fx.Node
) -> fx.Node:  # fmt: skip
    """Round a scaled weight to the scaled grid; a channel that the norm switches off keeps its grid, on which it is all zeros."""
    arguments: tuple[Any, ...] = rounded.args
    _, step_node, _, axis, group, *bounds = arguments
    step = program.weight(step_node)
    assert step is not None
    groups = _groups(producer) if producer.target in _TRANSPOSED else 1
    factor = torch.where(scale == 0, 1.0, scale.abs())
    if (
        groups > 1
    ):  # the channels of all groups share the steps along axis 1 of the weight: they need steps of their own
        raise PassError(
            "DS0319", "the rounded weight of a grouped transposed convolution shares its steps among groups",
            where=program.where(producer), fix="run fold-batch-norm before quantize-prepare",
        )  # fmt: skip
    steps = step.detach().double()
    new_step = steps * (factor if steps.dim() < 2 else factor[:, None])
    name = program.weight_name(weight)
    kept = rewriter.add_weight(f"{name}_scale", new_step.float(), "parameter")
    zero = rewriter.add_weight(f"{name}_zero_point", torch.zeros(new_step.shape), "buffer")
    return rewriter.call(_FAKE, weight, kept, zero, axis, group, *bounds, like=like)


def _groups(producer: fx.Node) -> int:
    groups: Any = producer.args[6] if len(producer.args) > 6 else 1
    return int(groups)


def _double(program: Program, node: object) -> Tensor | None:
    stored = program.weight(node)
    return None if stored is None else stored.detach().double()


def _scaled(weight: Tensor, scale: Tensor, producer: fx.Node) -> Tensor:
    """Multiply each output channel of a weight by its scale."""
    if producer.target not in _TRANSPOSED:
        return weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
    # A transposed weight is (C, N / groups, *kernel): output channel n of group g belongs to input channels of group g.
    groups = _groups(producer)
    split = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    per_group = scale.reshape(groups, 1, weight.shape[1], *[1] * (weight.dim() - 2))
    return (split * per_group).reshape(weight.shape)
