"""Pooling, resampling and what else works image by image: channels pass, places are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    result_sizes,
    tensor,
)

if TYPE_CHECKING:
    from dsopt.passes.prune.inference import AxisInference


def _windows(dims: int) -> Rule:
    """Return the rule of an operator whose last `dims` dimensions are places."""

    def rule(inference: AxisInference, node: fx.Node, named: Named) -> Result:
        x = tensor(named.get("self", named.get("input")))
        first = rank(x) - dims
        inference.pin_dims(x, range(first, rank(x)), "a window moves along it")
        axes = (*inference.axes(x)[:first], *fixed_axes(result_sizes(node)[first:]))
        value = node.meta["val"]
        return [axes] * len(value) if isinstance(value, (tuple, list)) else axes

    return rule


def _grid_sample(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    x, grid = tensor(named["input"]), tensor(named["grid"])
    inference.pin_dims(x, range(2, rank(x)), "it is sampled")
    inference.pin_dims(grid, range(1, rank(grid)), "it holds places")
    inference.tie(grid, 0, inference.dim(x, 0))
    return (*inference.axes(x)[:2], *fixed_axes(result_sizes(node)[2:]))


def _pixel_shuffle(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    """(.., C * r * r, H, W) -> (.., C, H * r, W * r): the r * r channels of one result go together."""
    x, factor = tensor(named["self"]), named["upscale_factor"]
    place = rank(x) - 3
    size = inference.shape(x)[place]
    channels, within = inference.regroup(inference.dim(x, place), size // (factor * factor), factor * factor)
    inference.pin(within, "they become neighbours in space", inner=True)
    return (*inference.axes(x)[:place], channels, *fixed_axes(result_sizes(node)[place + 1 :]))


def _pixel_unshuffle(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    x, factor = tensor(named["self"]), named["downscale_factor"]
    place = rank(x) - 3
    axes = inference.axes(x)
    out = (*axes[place], *fixed_axes([factor * factor])[0])
    return (*axes[:place], out, *fixed_axes(result_sizes(node)[place + 1 :]))


def _channel_shuffle(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    """The channels (groups, C) become (C, groups)."""
    x, groups = tensor(named["self"]), named["groups"]
    size = inference.shape(x)[1]
    outer, inner = inference.regroup(inference.dim(x, 1), groups, size // groups)
    inference.remember("groups", outer)
    axes = inference.axes(x)
    return (axes[0], (*inner, *outer), *axes[2:])


def _resize_shuffle(widths: Widths, node: fx.Node, named: Named) -> Call | None:
    groups = widths.kept(widths.inference.memory[node, "groups"])
    return None if groups == named["groups"] else (node.target, {**named, "groups": groups})


def _strided_view(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    """Tensor.unfold: one dimension becomes windows, whose elements are a new last dimension."""
    x = tensor(named["self"])
    place = axis(named["dimension"], rank(x))
    inference.pin_dims(x, (place,), "a window moves along it")
    axes, sizes = inference.axes(x), result_sizes(node)
    return (*axes[:place], *fixed_axes(sizes[place : place + 1]), *axes[place + 1 :], *fixed_axes(sizes[-1:]))


def _unfold(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    """im2col: (B, C, H, W) -> (B, C * window, places)."""
    x = tensor(named["self"])
    if rank(x) != 4:
        raise Unknown("its operand has no batch dim")
    window = named["kernel_size"][0] * named["kernel_size"][-1]
    inference.pin_dims(x, (2, 3), "a window moves along it")
    channels = (*inference.dim(x, 1), *fixed_axes([window])[0])
    return (inference.dim(x, 0), channels, *fixed_axes(result_sizes(node)[2:]))


def _fold(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    """col2im: (B, C * window, places) -> (B, C, H, W)."""
    x = tensor(named["self"])
    if rank(x) != 3:
        raise Unknown("its operand has no batch dim")
    window = named["kernel_size"][0] * named["kernel_size"][-1]
    size = inference.shape(x)[1]
    channels, within = inference.regroup(inference.dim(x, 1), size // window, window)
    inference.pin(within, "the window of a fold", inner=True)
    inference.pin_dims(x, (2,), "it holds places")
    return (inference.dim(x, 0), channels, *fixed_axes(result_sizes(node)[2:]))


RULES: dict[str, Rule] = {
    **each("max_pool1d avg_pool1d adaptive_avg_pool1d adaptive_max_pool1d upsample_nearest1d upsample_linear1d lp_pool1d "
           "_upsample_nearest_exact1d reflection_pad1d replication_pad1d max_pool1d_with_indices", _windows(1)),
    **each("max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d _adaptive_avg_pool2d max_pool2d_with_indices upsample_nearest2d "
           "upsample_bilinear2d upsample_bicubic2d _upsample_nearest_exact2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa lp_pool2d "
           "reflection_pad2d replication_pad2d", _windows(2)),
    **each("max_pool3d avg_pool3d adaptive_avg_pool3d adaptive_max_pool3d max_pool3d_with_indices upsample_nearest3d upsample_trilinear3d "
           "reflection_pad3d replication_pad3d", _windows(3)),
    "grid_sampler": _grid_sample,
    "grid_sampler_2d": _grid_sample,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "channel_shuffle": _channel_shuffle,
    "unfold": _strided_view,
    "im2col": _unfold,
    "col2im": _fold,
}  # fmt: skip
RESIZES: dict[str, Resize] = {"channel_shuffle": _resize_shuffle}
