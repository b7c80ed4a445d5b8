"""Pairs of layers between which a factor may move, channel by channel, because all that stands between them is homogeneous."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from dsopt.ir import Program, Rewriter
from dsopt.passes.quantize.layer import Layer, layer_of

_ATEN = torch.ops.aten
_DSOPT = torch.ops.dsopt

_ELEMENTWISE = {_ATEN.relu.default, _ATEN.leaky_relu.default, _ATEN.dropout.default}
"""f(s x) = s f(x) for each s > 0."""

_POOLS = {
    _ATEN.max_pool1d.default: 1, _ATEN.avg_pool1d.default: 1, _ATEN.adaptive_avg_pool1d.default: 1,
    _ATEN.max_pool2d.default: 2, _ATEN.avg_pool2d.default: 2, _ATEN.adaptive_avg_pool2d.default: 2,
}  # fmt: skip
"""The same, and how many last axes they go over."""

_VIEWS = {
    _ATEN.reshape.default, _ATEN.view.default, _ATEN.flatten.using_ints, _ATEN.squeeze.dim, _ATEN.squeeze.dims,
}  # fmt: skip
_NORMS = {_ATEN.batch_norm.default}


@dataclass(frozen=True)
class Pair:
    """Two layers in a row. repeat: how many inputs of the second, next to each other, are of one channel of the first."""

    first: Layer
    second: Layer
    repeat: int


@dataclass(frozen=True)
class _Place:
    """A value, and the axis on which the channels of a layer before it are, each `repeat` times."""

    value: fx.Node
    axis: int
    repeat: int


def find_pairs(program: Program, rewriter: Rewriter) -> list[Pair]:
    """Return the pairs in the order of the graph; record of layers that seem to be one, and are not, why."""
    layers = {node: layer for node in program.graph.nodes if (layer := layer_of(program, node)) is not None}
    readers: Counter[fx.Node] = Counter()
    for layer in layers.values():
        readers.update(each for each in (layer.weight, layer.bias) if each is not None)
    pairs = []
    for node, layer in layers.items():
        pair, why = _next(layer, layers)
        why = why or ("" if pair is None else _refusal(program, pair, readers))
        if why:
            rewriter.skip(node, why)
        elif pair is not None:
            pairs.append(pair)
    return pairs


def _next(first: Layer, layers: dict[fx.Node, Layer]) -> tuple[Pair | None, str]:
    """Return the layer that alone reads a result, behind homogeneous functions at most; or why there is none that should be."""
    node = first.node
    if not _is_homogeneous_ending(node):
        return None, ""
    place = _Place(node, first.channel_axis % _rank(node), 1)
    while len(place.value.users) == 1:
        (user,) = place.value.users
        if user.op != "call_function" or user.args[0] is not place.value:
            return None, ""
        if user.target in _NORMS:
            return None, "a batch norm follows it: run fold-batch-norm first"
        second = layers.get(user)
        if second is not None:
            is_same = place.axis == (1 if second.conv is not None else _rank(place.value) - 1)
            return (Pair(first, second, place.repeat), "") if is_same else (None, "")
        after = _behind(place, user)
        if after is None:
            return None, ""
        place = after
    return None, ""


def _is_homogeneous_ending(node: fx.Node) -> bool:
    arguments: tuple[Any, ...] = node.args
    places: dict[Any, int] = {_DSOPT.conv_act.default: 9, _DSOPT.linear_act.default: 3}
    place = places.get(node.target)
    return place is None or arguments[place] in ("none", "relu", "leaky_relu")


def _behind(place: _Place, user: fx.Node) -> _Place | None:
    """Return where the channels are behind a node that scales with its first argument, None behind any other."""
    before, after = _shape(place.value), _shape(user)
    if user.target in _ELEMENTWISE:
        return replace(place, value=user)
    if user.target in _POOLS:
        is_spatial = len(before) - _POOLS[user.target] > place.axis
        return replace(place, value=user) if is_spatial else None
    if user.target in (_ATEN.constant_pad_nd.default, _ATEN.pad.default):
        return replace(place, value=user) if _pads_around(place, user) else None
    if user.target is _ATEN.mean.dim:
        arguments: Any = user.args
        dims = [int(dim) % len(before) for dim in arguments[1] or ()]
        return replace(place, value=user) if dims and min(dims) > place.axis else None
    if user.target in _VIEWS and place.axis == 1:
        return _viewed(place, user, before, after)
    return None


def _pads_around(place: _Place, user: fx.Node) -> bool:
    """Tell whether zeros are put around channels, not between them."""
    arguments: Any = user.args
    if user.kwargs or len(arguments[1]) // 2 >= _rank(place.value) - place.axis:
        return False
    if user.target is _ATEN.pad.default and len(arguments) > 2 and arguments[2] != "constant":
        return True  # copies of what is there
    value = arguments[3:] if user.target is _ATEN.pad.default else arguments[2:]
    return not value or value[0] in (None, 0)


def _viewed(place: _Place, user: fx.Node, before: tuple[Any, ...], after: tuple[Any, ...]) -> _Place | None:
    """Return where channels are when (B, C, H, W) is read as (B, C, H * W), or as (B, C * H * W)."""
    if len(after) < 2 or before[0] != after[0] or not all(isinstance(size, int) for size in (*before[1:], *after[1:])):
        return None
    spatial = math.prod(before[2:])
    if after[1] == before[1]:
        return replace(place, value=user)
    if len(after) == 2 and after[1] == before[1] * spatial:
        return _Place(user, 1, place.repeat * spatial)
    return None


def _refusal(program: Program, pair: Pair, readers: Counter[fx.Node]) -> str:
    first, second = pair.first, pair.second
    stored = [first.weight, second.weight, *([] if first.bias is None else [first.bias])]
    if any(program.weight(each) is None for each in stored):
        return "a weight of the two layers is computed, not stored"
    if any(readers[each] > 1 or len(each.users) > 1 for each in stored):
        return "a weight of the two layers is read by another layer too"
    return ""


def _shape(node: fx.Node) -> tuple[Any, ...]:
    return tuple(node.meta["val"].shape)


def _rank(node: fx.Node) -> int:
    return len(_shape(node))
