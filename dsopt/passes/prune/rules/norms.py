"""Normalisations: scales, shifts and statistics go with their channels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import fx

from dsopt.passes.prune.rules.base import (
    Call,
    Named,
    Resize,
    Result,
    Rule,
    Unknown,
    Widths,
    axis,
    each,
    fixed_axes,
    rank,
    tensor,
)

if TYPE_CHECKING:
    from dsopt.passes.prune.inference import AxisInference


def _by_channel(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    """Batch and instance normalisation: each channel, the second dimension, stands alone."""
    x = tensor(named["input"])
    if rank(x) < 2:
        raise Unknown("its operand has no dim of channels")
    for name in ("weight", "bias", "running_mean", "running_var"):
        if named.get(name) is not None:
            inference.tie(tensor(named[name]), 0, inference.dim(x, 1))
    axes = inference.axes(x)
    if named.get("training", named.get("train", named.get("use_input_stats", False))):
        inference.uses_statistics(axes[0], *axes[2:])
    return axes


def _trailing(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    """Layer and RMS normalisation: statistics over the last dimensions, of the channels that are there."""
    x = tensor(named["input"])
    first = rank(x) - len(named["normalized_shape"])
    axes = inference.axes(x)
    for name in ("weight", "bias"):
        if named.get(name) is not None:
            for index, expr in enumerate(axes[first:]):
                inference.tie(tensor(named[name]), index, expr)
    inference.uses_statistics(*axes[first:])
    return axes


def _resize_trailing(widths: Widths, node: fx.Node, named: Named) -> Call | None:
    x = tensor(named["input"])
    sizes = list(named["normalized_shape"])
    exprs = widths.inference.axes(x)[rank(x) - len(sizes) :]
    new = [size if isinstance(size, fx.Node) else widths.kept(expr) for size, expr in zip(sizes, exprs, strict=True)]
    return None if new == sizes else (node.target, {**named, "normalized_shape": new})


def _group_norm(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    """Whole groups can go, which leaves the statistics of the others alone; where there is one group, its channels can."""
    x, groups = tensor(named["input"]), named["num_groups"]
    size = inference.shape(x)[1]
    if not isinstance(size, int):
        raise Unknown("its number of channels varies")
    channels = inference.dim(x, 1)
    if groups == 1:
        inference.uses_statistics(channels)
    else:
        group, within = inference.regroup(channels, groups, size // groups)
        inference.pin(within, "statistics are taken over each group of it")
        inference.remember("groups", group)
    for name in ("weight", "bias"):
        if named[name] is not None:
            inference.tie(tensor(named[name]), 0, channels)
    return inference.axes(x)


def _resize_groups(widths: Widths, node: fx.Node, named: Named) -> Call | None:
    group = widths.inference.memory.get((node, "groups"))
    if group is None or widths.kept(group) == named["num_groups"]:
        return None
    return node.target, {**named, "num_groups": widths.kept(group)}


def _weight_norm(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    """g * v / |v|, a length for each index of one dimension, over all others (Salimans & Kingma 2016)."""
    v, g = tensor(named["v"]), tensor(named["g"])
    place = axis(named["dim"], rank(v))
    axes = inference.axes(v)
    for index in range(rank(g)):
        if inference.shape(g)[index] != 1:
            inference.tie(g, index, axes[index])
    inference.uses_statistics(*(expr for index, expr in enumerate(axes) if index != place))
    lengths = tuple(expr if index == place else () for index, expr in enumerate(axes))
    return [axes, lengths] if isinstance(node.meta["val"], (tuple, list)) else axes


def _native_batch(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    """With its statistics, one for each channel, or empty where they are given."""
    axes: Any = _by_channel(inference, node, named)
    statistics = [(axes[1],) if value.numel() else fixed_axes(value.shape) for value in node.meta["val"][1:]]
    return [axes, *statistics]


def _native_layer(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    """With its statistics, of size 1 along what is normalised."""
    axes: Any = _trailing(inference, node, named)
    count = len(named["normalized_shape"])
    statistics = (*axes[: len(axes) - count], *((),) * count)
    return [axes, statistics, statistics]


def _native_group(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    """With its statistics, (B, groups)."""
    axes: Any = _group_norm(inference, node, {**named, "num_groups": named["group"]})
    inference.remember("channels", axes[1])
    groups = inference.memory.get((node, "groups"), ())
    return [axes, (axes[0], groups), (axes[0], groups)]


def _resize_native_group(widths: Widths, node: fx.Node, named: Named) -> Call | None:
    memory = widths.inference.memory
    channels = widths.kept(memory[node, "channels"])
    group = memory.get((node, "groups"))
    if channels == named["C"]:
        return None
    return node.target, {**named, "C": channels, "group": 1 if group is None else widths.kept(group)}


RULES: dict[str, Rule] = {
    "batch_norm": _by_channel,
    "instance_norm": _by_channel,
    "layer_norm": _trailing,
    "rms_norm": _trailing,
    "group_norm": _group_norm,
    **each("native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training", _native_batch),
    **each("_weight_norm _weight_norm_interface", _weight_norm),
    "native_layer_norm": _native_layer,
    "native_group_norm": _native_group,
}
RESIZES: dict[str, Resize] = {
    "layer_norm": _resize_trailing,
    "rms_norm": _resize_trailing,
    "group_norm": _resize_groups,
    "native_layer_norm": _resize_trailing,
    "native_group_norm": _resize_native_group,
}
