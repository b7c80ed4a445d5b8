"""Resampling of images: nearest, linear and cubic interpolation, and sampling at a grid of places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from dsopt.backends.cpu.builder import Value
from dsopt.backends.cpu.emitter import Emitter
from dsopt.backends.cpu.registry import RefusalError, converter

_CUBIC = -0.75  # torch's cubic coefficient


def _scales(given: Any, count: int) -> list[float] | None:
    """Return one scale for each spatial axis, None where the result's size is what counts."""
    numbers = list(given) if isinstance(given, (list, tuple)) else [given]
    return None if not numbers or any(each is None for each in numbers) else [float(each) for each in numbers]


def _register_nearest(spatial: int, exact: bool) -> None:
    name = f"aten.{'_upsample_nearest_exact' if exact else 'upsample_nearest'}{spatial}d"

    @converter(f"{name}.vec", f"{name}.default")
    def convert(cx: Emitter, x: fx.Node, output_size: Any, *scales: Any) -> Value:
        return _nearest(cx, x, output_size, _scales(scales[0] if len(scales) == 1 else scales, spatial), exact)


for _spatial in (1, 2, 3):
    _register_nearest(_spatial, exact=False)
    _register_nearest(_spatial, exact=True)


def _nearest(cx: Emitter, x: fx.Node, output_size: Any, scales: list[float] | None, exact: bool) -> Value:
    """Write nearest-neighbour resampling: Resize for whole factors, else Gather at the places that torch computes."""
    before, after = cx.shape(x)[2:], cx.out.shape[2:]
    fixed = all(isinstance(size, int) for size in (*before, *after))
    if fixed and all(b % a == 0 for a, b in zip(before, after, strict=True)):
        factors = [1.0, 1.0, *(b / a for a, b in zip(before, after, strict=True))]
        return _resize(cx, cx.value(x), torch.tensor(factors), None, "nearest", "asymmetric", nearest_mode="floor")
    if fixed:
        value = cx.value(x)
        for axis, (size, target) in enumerate(zip(before, after, strict=True)):
            places = _places(int(size), int(target), scales, axis, exact)
            value = cx.op("Gather", value, cx.constant(places, torch.int64), axis=axis + 2)
        return value
    if scales is None:
        return _resize(cx, cx.value(x), None, _target(cx, x, output_size), "nearest",
                       "half_pixel" if exact else "asymmetric", nearest_mode="floor" if not exact else "round_prefer_ceil")  # fmt: skip
    factors = [1.0, 1.0, *scales]
    mode = "half_pixel" if exact else "asymmetric"
    nearest = "round_prefer_ceil" if exact else "floor"
    return _resize(cx, cx.value(x), torch.tensor(factors), None, "nearest", mode, nearest_mode=nearest)


def _places(size: int, target: int, scales: list[float] | None, axis: int, exact: bool) -> torch.Tensor:
    """Return where each result element is read, by asking torch to resample 0, 1, 2, ..."""
    line = torch.arange(size, dtype=torch.float64).reshape(1, 1, size)
    operator = torch.ops.aten._upsample_nearest_exact1d if exact else torch.ops.aten.upsample_nearest1d
    return operator.default(line, [target], None if scales is None else scales[axis]).reshape(-1)  # type: ignore[no-any-return]


def _target(cx: Emitter, x: fx.Node, output_size: Any) -> Value:
    return cx.sizes([cx.extent(x, 0), cx.extent(x, 1), *(cx.size(size) for size in output_size)])


def _resize(
    cx: Emitter,
    value: Value,
    scales: torch.Tensor | None,
    sizes: Value | None,
    mode: str,
    coordinates: str,
    **more: Any,
) -> Value:
    factors = None if scales is None else cx.constant(scales, torch.float32)
    return cx.op(
        "Resize", value, None, factors, sizes, mode=mode, coordinate_transformation_mode=coordinates, **more
    )  # fmt: skip


@converter(
    "aten.upsample_linear1d.vec", "aten.upsample_linear1d.default", "aten.upsample_bilinear2d.vec",
    "aten.upsample_bilinear2d.default", "aten.upsample_trilinear3d.vec", "aten.upsample_trilinear3d.default",
)  # fmt: skip
def convert_linear(cx: Emitter, x: fx.Node, output_size: Any, align_corners: bool, *scales: Any) -> Value:
    """Write linear resampling along all spatial axes."""
    return _smooth(cx, x, output_size, align_corners, scales, "linear")


@converter("aten.upsample_bicubic2d.vec", "aten.upsample_bicubic2d.default")
def convert_cubic(cx: Emitter, x: fx.Node, output_size: Any, align_corners: bool, *scales: Any) -> Value:
    """Write cubic resampling."""
    return _smooth(cx, x, output_size, align_corners, scales, "cubic", cubic_coeff_a=_CUBIC)


@converter(
    "aten._upsample_bilinear2d_aa.vec", "aten._upsample_bilinear2d_aa.default", "aten._upsample_bicubic2d_aa.vec",
    "aten._upsample_bicubic2d_aa.default",
)  # fmt: skip
def convert_antialiased(cx: Emitter, x: fx.Node, output_size: Any, align_corners: bool, *scales: Any) -> Value:
    """Write resampling that filters before it shrinks."""
    if "bicubic" in str(cx.node.target):  # torch's filter of these has the coefficient of the PIL library
        return _smooth(
            cx, x, output_size, align_corners, scales, "cubic", antialias=1, exclude_outside=1, cubic_coeff_a=-0.5
        )
    return _smooth(cx, x, output_size, align_corners, scales, "linear", antialias=1, exclude_outside=1)


def _smooth(
    cx: Emitter, x: fx.Node, output_size: Any, align_corners: bool, given: Sequence[Any], mode: str, **more: Any
) -> Value:
    spatial = cx.rank(x) - 2
    scales = _scales(given[0] if len(given) == 1 else given, spatial)
    value = cx.value(x)
    lift = spatial == 1  # ONNX Runtime interpolates two axes or three
    coordinates = "align_corners" if align_corners else "half_pixel"
    if scales is not None and not (align_corners or "antialias" in more):
        factors = torch.tensor([1.0, 1.0, *([1.0] if lift else []), *scales])
        y = _resize(cx, cx.unsqueeze(value, 2) if lift else value, factors, None, mode, coordinates, **more)
    else:
        targets = output_size if output_size is not None else cx.out.shape[2:]
        extents = [cx.size(size) if isinstance(size, (fx.Node, int)) else cx.symbolic(size) for size in targets]
        sizes = cx.sizes([cx.extent(x, 0), cx.extent(x, 1), *([1] if lift else []), *extents])
        y = _resize(cx, cx.unsqueeze(value, 2) if lift else value, None, sizes, mode, coordinates, **more)
    return cx.squeeze(y, 2) if lift else y


@converter("aten.grid_sampler.default", "aten.grid_sampler_2d.default", "aten.grid_sampler_3d.default")
def convert_grid_sample(
    cx: Emitter, x: fx.Node, grid: fx.Node, interpolation_mode: int, padding_mode: int, align_corners: bool
) -> Value:
    """Write samples at a grid of places in -1..1."""
    mode = ("linear", "nearest", "cubic")[interpolation_mode]
    if cx.rank(x) != 4 and mode == "cubic":
        raise RefusalError("cubic sampling of a volume", "sample linearly")
    padding = ("zeros", "border", "reflection")[padding_mode]
    return cx.op(
        "GridSample", cx.value(x), cx.value(grid), mode=mode, padding_mode=padding, align_corners=int(align_corners)
    )  # fmt: skip


@converter("aten.affine_grid_generator.default")
def convert_affine_grid(cx: Emitter, theta: fx.Node, size: Sequence[Any], align_corners: bool) -> Value:
    """Write the grid of an affine map: base places times theta, as one matrix product."""
    sizes = [cx.fixed(each, "the size of the grid") for each in size[2:]]
    lines = []
    for count in sizes:
        line = torch.linspace(-1, 1, count, dtype=torch.float64) if count > 1 else torch.zeros(1, dtype=torch.float64)
        lines.append(line if align_corners else line * (count - 1) / count)
    grids = torch.meshgrid(*lines, indexing="ij")
    base = torch.stack([*reversed(grids), torch.ones_like(grids[0])], dim=-1).reshape(-1, len(sizes) + 1)
    y = cx.op("MatMul", cx.constant(base, cx.dtype), cx.transpose(cx.value(theta), [0, 2, 1]))
    return cx.op("Reshape", y, cx.vector([0, *sizes, len(sizes)]))


@converter("aten.im2col.default")
def convert_im2col(
    cx: Emitter,
    x: fx.Node,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Value:
    """Write the windows of an image as columns: a convolution with one-hot kernels, channel by channel."""
    channels = cx.fixed(cx.shape(x)[1], "the number of channels")
    count = kernel_size[0] * kernel_size[1]
    weight = torch.eye(count).reshape(count, 1, *kernel_size).repeat(channels, 1, 1, 1)
    y = cx.op(
        "Conv", cx.value(x), cx.constant(weight, cx.dtype), strides=list(stride), pads=[*padding, *padding],
        dilations=list(dilation), group=channels, kernel_shape=list(kernel_size),
    )  # fmt: skip
    return cx.op("Reshape", y, cx.vector([0, channels * count, -1]))


@converter("aten.col2im.default")
def convert_col2im(
    cx: Emitter,
    x: fx.Node,
    output_size: Sequence[Any],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Value:
    """Write columns summed back into an image."""
    size = cx.sizes([cx.size(each) for each in output_size])
    return cx.op(
        "Col2Im", cx.value(x), size, cx.vector(kernel_size), dilations=list(dilation), pads=[*padding, *padding],
        strides=list(stride),
    )  # fmt: skip


@converter("aten.unfold.default")
def convert_unfold(cx: Emitter, x: fx.Node, dimension: int, size: int, step: int) -> Value:
    """Write the windows along an axis, their elements along a new last one."""
    axis, rank = cx.axis(dimension, cx.rank(x)), cx.rank(x)
    count = cx.fixed(cx.out.shape[axis], "the number of windows")
    places = torch.arange(count)[:, None] * step + torch.arange(size)[None, :]
    y = cx.op("Gather", cx.value(x), cx.constant(places, torch.int64), axis=axis)
    order = [each for each in range(rank + 1) if each != axis + 1]
    return cx.transpose(y, [*order, axis + 1])
