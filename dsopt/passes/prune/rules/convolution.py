"""Convolutions of every kind: plain, grouped, depthwise and transposed.

In `groups` groups the input channels are (groups, Ci) and the output channels (groups, Co). A weight stores (groups * Co, Ci, window..),
a transposed one (groups * Ci, Co, window..): the dimension without the groups is shared by all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from dsopt.passes.prune.axes import Expr
from dsopt.passes.prune.rules.base import (
    Call,
    Named,
    Resize,
    Result,
    Rule,
    Unknown,
    Widths,
    each,
    fixed_axes,
    packet_name,
    rank,
    result_sizes,
    tensor,
)

if TYPE_CHECKING:
    from dsopt.passes.prune.inference import AxisInference


def _convolution(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    x, weight = tensor(named.get("input", named.get("x"))), tensor(named["weight"])
    spatial = rank(weight) - 2
    place = rank(x) - spatial - 1
    if place < 0 or not isinstance(named["groups"], int):
        raise Unknown("its operands have an unusual number of dims")
    is_transposed = named["transposed"] if "transposed" in named else "transpose" in packet_name(node)
    inference.pin_dims(weight, range(2, rank(weight)), "the window of a convolution", inner=True)
    inference.pin_dims(x, range(place + 1, rank(x)), "a window moves along it")
    channels = inference.dim(x, place)
    if named["groups"] == 1:  # else an output channel may have but one of its input, and both go together
        inference.sums_over(channels, x, weight)
    out = _channels(inference, channels, weight, named["groups"], is_transposed)
    if named["bias"] is not None:
        inference.tie(tensor(named["bias"]), 0, out)
    return (*inference.axes(x)[:place], out, *fixed_axes(result_sizes(node)[place + 1 :]))


def _channels(inference: AxisInference, channels: Expr, weight: fx.Node, groups: int, is_transposed: bool) -> Expr:
    """Hold the weight's channels to those of the input and return those of the output."""
    first, second = inference.shape(weight)[:2]
    if groups == 1:
        inference.tie(weight, 0 if is_transposed else 1, channels)
        return inference.dim(weight, 1 if is_transposed else 0)
    if is_transposed:
        inference.tie(weight, 0, channels)
        group, _ = inference.regroup(channels, groups, first // groups)
        inference.remember("groups", group)
        return (*group, *inference.dim(weight, 1))
    group, within = inference.regroup(channels, groups, second)
    inference.tie(weight, 1, within)
    inference.remember("groups", group)
    if inference.is_open(weight, 0):
        inference.tie(weight, 0, (*group, *inference.fresh(first // groups)))
        return inference.dim(weight, 0)
    rows, filters = inference.regroup(inference.dim(weight, 0), groups, first // groups)
    inference.unify(rows, group)
    return (*group, *filters)


def _resize(widths: Widths, node: fx.Node, named: Named) -> Call | None:
    group = widths.inference.memory.get((node, "groups"))
    if group is None or widths.kept(group) == named["groups"]:
        return None
    return node.target, {**named, "groups": widths.kept(group)}


_NAMES = "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution dsopt.conv_act"
RULES: dict[str, Rule] = each(_NAMES, _convolution)
RESIZES: dict[str, Resize] = each(_NAMES, _resize)
