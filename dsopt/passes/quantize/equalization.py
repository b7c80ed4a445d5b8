"""cross-layer-equalization: move scale between layers that follow each other, so that all channels of a weight use its grid."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from dsopt.ir import Program, Rewriter
from dsopt.passes.base import Pass, PassContext
from dsopt.passes.quantize.layer import Layer, layer_of

_ATEN = torch.ops.aten
_DSOPT = torch.ops.dsopt

_HOMOGENEOUS = {
    _ATEN.relu.default, _ATEN.leaky_relu.default, _ATEN.dropout.default, _ATEN.max_pool1d.default, _ATEN.max_pool2d.default,
    _ATEN.avg_pool1d.default, _ATEN.avg_pool2d.default, _ATEN.adaptive_avg_pool1d.default, _ATEN.adaptive_avg_pool2d.default,
}  # fmt: skip
"""f(s x) = s f(x) for each s > 0, channel by channel."""

_VIEWS = {
    _ATEN.reshape.default, _ATEN.view.default, _ATEN.flatten.using_ints, _ATEN.squeeze.dim, _ATEN.squeeze.dims,
}  # fmt: skip
_SWEEPS, _ENOUGH = 20, 1e-3
_MOST = 1e4
"""The largest factor of a channel in one sweep."""


@dataclass(frozen=True)
class Pair:
    """Two layers between which nothing but homogeneous functions stand, so that a factor may move from one to the other."""

    first: Layer
    second: Layer


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
        """Find the pairs, and equalise them over and over."""
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


def find_pairs(program: Program, rewriter: Rewriter) -> list[Pair]:
    """Return the pairs in the order of the graph; says of a layer with one successor why it is none."""
    layers = {node: layer for node in program.graph.nodes if (layer := layer_of(program, node)) is not None}
    readers: Counter[fx.Node] = Counter()
    for layer in layers.values():
        readers.update(each for each in (layer.weight, layer.bias) if each is not None)
    pairs = []
    for node, layer in layers.items():
        second = _next(node, layers)
        if second is None:
            continue
        why = _refusal(program, layer, second, readers)
        if why:
            rewriter.skip(node, why)
        else:
            pairs.append(Pair(layer, second))
    return pairs


def _next(node: fx.Node, layers: dict[fx.Node, Layer]) -> Layer | None:
    """Return the layer that alone reads a result, behind homogeneous functions at most."""
    if not _is_homogeneous_ending(node):
        return None
    value = node
    while len(value.users) == 1:
        (user,) = value.users
        layer = layers.get(user)
        if layer is not None:
            return layer if layer.x is value and layer.node.args.count(value) == 1 else None
        if user.op != "call_function" or user.args[0] is not value or not _passes_on(user):
            return None
        value = user
    return None


def _is_homogeneous_ending(node: fx.Node) -> bool:
    arguments: tuple[Any, ...] = node.args
    places: dict[Any, int] = {_DSOPT.conv_act.default: 9, _DSOPT.linear_act.default: 3}
    place = places.get(node.target)
    return place is None or arguments[place] in ("relu", "leaky_relu")


def _passes_on(node: fx.Node) -> bool:
    """Tell whether a node scales with its first argument and leaves channels where they are."""
    if node.target in _HOMOGENEOUS:
        return True
    arguments: tuple[Any, ...] = node.args
    before, after = (getattr(each.meta["val"], "shape", ()) for each in (arguments[0], node))
    if node.target is _ATEN.mean.dim:
        return bool(arguments[1]) and all(int(dim) % len(before) > 1 for dim in arguments[1])
    if node.target in _VIEWS:  # (B, C, 1, 1) as (B, C)
        return tuple(before[:2]) == tuple(after[:2]) and all(size == 1 for size in (*before[2:], *after[2:]))
    return False


def _refusal(program: Program, first: Layer, second: Layer, readers: Counter[fx.Node]) -> str:
    stored = [first.weight, second.weight, *([] if first.bias is None else [first.bias])]
    if any(program.weight(each) is None for each in stored):
        return "a weight of the two layers is computed, or rounded already"
    if any(readers[each] > 1 or len(each.users) > 1 for each in stored):
        return "a weight of the two layers is read by another layer too"
    outputs = first.output_ranges(_stored(program, first.weight))
    if len(outputs) != len(second.input_ranges(_stored(program, second.weight))):
        return "its channels are not those of the layer that reads it"
    return ""


def _equalise(program: Program, pair: Pair, values: dict[str, Tensor]) -> Tensor:
    first, second = _name(program, pair.first.weight), _name(program, pair.second.weight)
    outputs, inputs = pair.first.output_ranges(values[first]), pair.second.input_ranges(values[second])
    is_alive = (outputs > 0) & (inputs > 0)
    factor = torch.where(is_alive, (outputs / inputs.clamp(min=1e-300)).sqrt(), 1.0).clamp(1 / _MOST, _MOST)
    values[first] = pair.first.scale_outputs(values[first], 1 / factor)
    if pair.first.bias is not None:
        bias = _name(program, pair.first.bias)
        values[bias] = values[bias] / factor
    values[second] = pair.second.scale_inputs(values[second], factor)
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
