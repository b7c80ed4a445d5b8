"""cross-layer-equalization: move scale between layers that follow each other, so that all channels of a weight use its grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from dsopt.errors import UsageError
from dsopt.ir import Program, Rewriter
from dsopt.passes.base import Pass, PassContext
from dsopt.passes.quantize.pairs import Pair, find_pairs

_DSOPT = torch.ops.dsopt
_ROUNDINGS = {_DSOPT.fake_quantize.default, _DSOPT.quantize.default, _DSOPT.dequantize_channel.default}

_SWEEPS, _ENOUGH = 20, 1e-3
_MOST = 1e4
"""The largest factor of a channel in one sweep."""


@dataclass(frozen=True)
class CrossLayerEqualization(Pass):
    """conv(relu(conv(x, a, c)), b) -> conv(relu(conv(x, a / s, c / s)), b s), channel by channel, with s = sqrt(max|a| / max|b|).

    Afterwards a channel has the same range in both weights, so that one scale for the whole tensor wastes little, and no channel of
    an activation dwarfs the others (Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction",
    section 4.1). The program computes what it did. Run it after fold-batch-norm and before quantize-prepare. Repeated until
    nothing moves by more than a thousandth, for chains of layers.
    """

    name: ClassVar[str] = "cross-layer-equalization"

    def run(self, program: Program, rewriter: Rewriter, context: PassContext) -> None:
        """Find the pairs, and equalise them over and over. Raises UsageError for a program whose values are rounded already."""
        if any(node.target in _ROUNDINGS for node in program.graph.nodes):
            raise UsageError(
                "DS0333", "values of the program are rounded already, to steps that no factor may change",
                fix="run cross-layer-equalization before quantize-prepare",
            )  # fmt: skip
        pairs = find_pairs(program, rewriter)
        if not pairs:
            return
        values = {name: tensor.detach().double() for pair in pairs for name, tensor in _tensors(program, pair).items()}
        total = [
            torch.ones(pair.first.output_ranges(values[_name(program, pair.first.weight)]).shape) for pair in pairs
        ]
        for _ in range(_SWEEPS):
            moved = 0.0
            for number, pair in enumerate(pairs):
                factor = _equalise(program, pair, values)
                total[number] = total[number] * factor
                moved = max(moved, float((factor.log().abs()).max()))
            if moved < _ENOUGH:
                break
        dtypes = {name: program.weights[name].dtype for name in values}
        rewriter.set_parameters({name: value.to(dtypes[name]) for name, value in values.items()})
        for pair, factor in zip(pairs, total, strict=True):
            rewriter.changes.append(
                f"%{pair.first.node.name} -> %{pair.second.node.name}: {len(factor)} channels scaled by "
                f"{float(factor.min()):.3g} to {float(factor.max()):.3g}"
            )


def _equalise(program: Program, pair: Pair, values: dict[str, Tensor]) -> Tensor:
    """Move what evens the two ranges of each channel, but where one of them is 0 or infinite."""
    first, second = _name(program, pair.first.weight), _name(program, pair.second.weight)
    outputs = pair.first.output_ranges(values[first])
    inputs = pair.second.input_ranges(values[second]).reshape(-1, pair.repeat).amax(1)
    is_alive = (outputs > 0) & (inputs > 0) & outputs.isfinite() & inputs.isfinite()
    factor = torch.where(is_alive, (outputs / inputs.clamp(min=1e-300)).sqrt(), 1.0).clamp(1 / _MOST, _MOST)
    values[first] = pair.first.scale_outputs(values[first], 1 / factor)
    if pair.first.bias is not None:
        bias = _name(program, pair.first.bias)
        values[bias] = values[bias] / factor
    values[second] = pair.second.scale_inputs(values[second], factor.repeat_interleave(pair.repeat))
    return factor


def _tensors(program: Program, pair: Pair) -> dict[str, Tensor]:
    nodes = [pair.first.weight, pair.second.weight, *([] if pair.first.bias is None else [pair.first.bias])]
    return {_name(program, node): _stored(program, node) for node in nodes}


def _name(program: Program, node: fx.Node) -> str:
    name = program.weight_name(node)
    assert name is not None
    return name


def _stored(program: Program, node: fx.Node) -> Tensor:
    value = program.weight(node)
    assert value is not None
    return value
