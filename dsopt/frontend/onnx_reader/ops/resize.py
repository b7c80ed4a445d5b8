"""Resizing images: by torch's operators where they mean the same, else axis by axis."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dsopt.frontend.onnx_reader.call import Call, axis_in, to_type
from dsopt.frontend.onnx_reader.problems import MalformedError
from dsopt.frontend.onnx_reader.registry import operator

MAX_MATRIX = 2**27
"""Elements before times after resizing one axis, which is the size of the matrix that does it."""
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class _Resize:
    """What a node asks for. axes: those that change; sizes, scales: one for each; roi: start and end for each."""

    mode: str
    coordinates: str
    nearest: str
    cubic: float
    excludes_outside: bool
    antialias: bool
    extrapolation: float
    axes: list[int]
    sizes: list[Any]
    scales: list[Any]
    has_sizes: bool
    roi: list[float]


@operator("Upsample")
def upsample(call: Call) -> Tensor:
    """Enlarge by factors."""
    x = call.tensor(0)
    scales = call.numbers(1) if call.version >= 9 else call.reals("scales") or []
    return resized(
        x, _asked(x, list(range(x.dim())), None, scales, call.text("mode", "nearest"), "asymmetric", "floor")
    )


@operator("Resize")
def resize(call: Call) -> Tensor:
    """Resize to sizes or by factors."""
    x = call.tensor(0)
    mode = call.text("mode", "nearest")
    if call.version < 11:
        return resized(x, _asked(x, list(range(x.dim())), None, call.numbers(1), mode, "asymmetric", "floor"))
    axes = [axis_in(axis, x.dim()) for axis in call.integers("axes", range(x.dim())) or []]
    scales = call.numbers(2) if call.has(2) else []
    sizes = call.numbers(3) if call.has(3) else None
    sizes = sizes or None
    if sizes is not None and len(sizes) != len(axes):
        raise MalformedError(f"it has {len(sizes)} sizes for {len(axes)} axes")
    policy = call.text("keep_aspect_ratio_policy", "stretch")
    if sizes is not None and policy != "stretch":
        factors = [size / x.shape[axis] for size, axis in zip(sizes, axes, strict=True)]
        factor = min(factors) if policy == "not_larger" else max(factors)
        sizes, scales = [math.floor(x.shape[axis] * factor + 0.5) for axis in axes], [factor] * len(axes)
    coordinates = call.text("coordinate_transformation_mode", "half_pixel")
    roi = [float(item) for item in call.numbers(1)] if coordinates == "tf_crop_and_resize" and call.has(1) else []
    asked = _asked(
        x, axes, sizes, scales, mode, coordinates, call.text("nearest_mode", "round_prefer_floor"),
        cubic=call.real("cubic_coeff_a", -0.75), excludes_outside=bool(call.integer("exclude_outside", 0)),
        antialias=bool(call.integer("antialias", 0)), extrapolation=call.real("extrapolation_value", 0.0), roi=roi,
    )  # fmt: skip
    return resized(x, asked)


def _asked(
    x: Tensor,
    axes: list[int],
    sizes: list[Any] | None,
    scales: list[Any],
    mode: str,
    coordinates: str,
    nearest: str,
    *,
    cubic: float = -0.75,
    excludes_outside: bool = False,
    antialias: bool = False,
    extrapolation: float = 0.0,
    roi: list[float] | None = None,
) -> _Resize:
    if sizes is None and len(scales) != len(axes):
        raise MalformedError(f"it has {len(scales)} scales for {len(axes)} axes")
    if mode not in ("nearest", "linear", "cubic"):
        raise MalformedError(f"attribute 'mode' is {mode!r}")
    has_sizes = sizes is not None
    places = dict(zip(axes, range(len(axes)), strict=True))
    kept, new_sizes, new_scales, region = [], list[Any](), list[Any](), list[float]()
    for axis, place in sorted(places.items()):
        extent = _extent(roi, place, len(axes))
        if sizes is not None:
            size: Any = sizes[place]
            scale: Any = scales[place] if scales else size / x.shape[axis]
        else:
            scale = _plain(scales[place])
            size = _scaled(x.shape[axis], scale, extent)
        if not roi and _same(size, x.shape[axis]) and (has_sizes or scale == 1):
            continue
        kept.append(axis)
        new_sizes.append(size)
        new_scales.append(scale)
        region += [roi[place], roi[place + len(axes)]] if roi else [0.0, 1.0]
    return _Resize(
        mode, coordinates, nearest, cubic, excludes_outside, antialias, extrapolation, kept, new_sizes, new_scales,
        has_sizes, region,
    )  # fmt: skip


def _extent(roi: list[float] | None, place: int, count: int) -> float:
    return roi[place + count] - roi[place] if roi else 1.0


def _plain(scale: Any) -> Any:
    return int(scale) if isinstance(scale, float) and scale.is_integer() else scale


def _scaled(size: Any, scale: Any, extent: float) -> Any:
    if isinstance(scale, int) and extent == 1.0:
        return size * scale
    if isinstance(size, int) and isinstance(scale, (int, float)):
        # In float32, as the scales were written: 5 * 0.6 is 3, not 2.9999999.
        return math.floor(np.float32(size) * np.float32(extent) * np.float32(scale))
    return math.floor(size * extent * scale)


def _same(left: Any, right: Any) -> bool:
    # Comparing symbolic sizes would assume the answer for every later run; equal expressions need no assumption.
    return str(left) == str(right)


def resized(x: Tensor, asked: _Resize) -> Tensor:
    """Resize by torch's operator if it means the same, else each axis by a matrix or by index."""
    if not asked.axes:
        return x
    function = _torch_form(x, asked)
    if function is not None:
        return function(x)
    if asked.mode == "nearest" and asked.coordinates != "tf_crop_and_resize":
        for position, axis in enumerate(asked.axes):
            x = x.index_select(axis, _nearest_places(x.shape[axis], asked, position))
        return x
    return _by_matrices(x, asked)


def _torch_form(x: Tensor, asked: _Resize) -> Callable[[Tensor], Tensor] | None:
    """Return torch's own resizing of the last one to three axes if it computes what is asked."""
    count = x.dim() - 2
    spatial = list(range(2, x.dim()))
    if not 1 <= count <= 3 or not set(asked.axes) <= set(spatial) or not x.is_floating_point() or asked.antialias:
        return None
    mode, align = _torch_mode(asked, count)
    if not mode:
        return None
    sizes = dict(zip(asked.axes, asked.sizes, strict=True))
    scales = dict(zip(asked.axes, asked.scales, strict=True))
    whole = all(isinstance(scales.get(axis, 1), int) for axis in spatial)
    if asked.has_sizes or align or (whole and not _is_varying(x)):
        target = [sizes.get(axis, x.shape[axis]) for axis in spatial]
        return lambda y: F.interpolate(y, target, mode=mode, align_corners=align)
    factors = [float(scales.get(axis, 1)) for axis in spatial]
    return lambda y: F.interpolate(
        y, scale_factor=factors, mode=mode, align_corners=align, recompute_scale_factor=False
    )


def _is_varying(x: Tensor) -> bool:
    return any(not isinstance(size, int) for size in x.shape[2:])


def _torch_mode(asked: _Resize, count: int) -> tuple[str, bool | None]:
    """Return torch's mode and align_corners; "" where it has none that means the same."""
    halves = asked.coordinates == "half_pixel"
    if asked.coordinates == "pytorch_half_pixel":  # differs from half_pixel in results of one element only
        halves = all(not (isinstance(size, int) and size == 1) for size in asked.sizes)
    if asked.mode == "nearest":
        if asked.coordinates == "asymmetric" and asked.nearest == "floor":
            return "nearest", None
        return ("nearest-exact", None) if halves and asked.nearest == "round_prefer_ceil" else ("", None)
    cubic = asked.mode == "cubic"
    if cubic and (count != 2 or asked.cubic != -0.75 or asked.excludes_outside):
        return "", None
    mode = "bicubic" if cubic else _LINEAR[count]
    if halves:
        return mode, False
    return (mode, True) if asked.coordinates == "align_corners" else ("", None)


# ---- axis by axis ----


def _coordinates(size: int, asked: _Resize, position: int) -> Any:
    """Return where on the input each element of the result lies, as numpy float64."""
    length, scale = int(asked.sizes[position]), float(asked.scales[position])
    index = np.arange(length, dtype=np.float64)
    mode = asked.coordinates
    if mode == "align_corners":
        return index * (size - 1) / (length - 1) if length > 1 else np.zeros(1)
    if mode == "asymmetric":
        return index / scale
    if mode == "tf_crop_and_resize":
        start, end = asked.roi[2 * position], asked.roi[2 * position + 1]
        if length > 1:
            return start * (size - 1) + index * (end - start) * (size - 1) / (length - 1)
        return np.full(1, 0.5 * (start + end) * (size - 1))
    if mode == "pytorch_half_pixel" and length == 1:
        return np.full(1, 0.0)
    if mode == "half_pixel_symmetric":
        centre, adjustment = size / 2, length / (scale * size)
        return centre * (1 - adjustment) + (index + 0.5) / scale - 0.5
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return (index + 0.5) / scale - 0.5
    raise MalformedError(f"attribute 'coordinate_transformation_mode' is {mode!r}")


def _fixed(size: Any, asked: _Resize, position: int) -> int:
    if not isinstance(size, int) or not isinstance(asked.sizes[position], int):
        from dsopt.frontend.onnx_reader.problems import UnsupportedFormError

        what = f"Resize of a varying size in mode {asked.mode} with {asked.coordinates} coordinates"
        raise UnsupportedFormError(what, "mode linear or nearest with half_pixel or asymmetric coordinates")
    if not 0 < asked.sizes[position] * size < MAX_MATRIX:
        raise MalformedError(f"it resizes {size} elements to {asked.sizes[position]}")
    return size


def _nearest_places(varying: Any, asked: _Resize, position: int) -> Tensor:
    size = _fixed(varying, asked, position)
    places = _rounded(_coordinates(size, asked, position), asked.nearest)
    return torch.from_numpy(np.clip(places, 0, size - 1).astype(np.int64))


def _rounded(places: Any, mode: str) -> Any:
    # Places are fractions computed in floating point; a hair beside a half or a whole number is that number.
    places = np.round(places, 9)
    if mode == "round_prefer_floor":
        return np.ceil(places - 0.5)
    if mode == "round_prefer_ceil":
        return np.floor(places + 0.5)
    return np.floor(places) if mode == "floor" else np.ceil(places)


def _by_matrices(x: Tensor, asked: _Resize) -> Tensor:
    """Multiply each axis by the matrix of its interpolation."""
    dtype = x.dtype
    y = x if x.is_floating_point() else x.to(torch.float32)
    for position, axis in enumerate(asked.axes):
        size = _fixed(x.shape[axis], asked, position)
        places = _coordinates(size, asked, position)
        matrix = _matrix(places, size, float(asked.scales[position]), asked)
        weights = to_type(torch.from_numpy(matrix.astype(np.float32)), y.dtype)
        y = torch.matmul(y.movedim(axis, -1), weights.t()).movedim(-1, axis)
    if asked.coordinates == "tf_crop_and_resize":
        for position, axis in enumerate(asked.axes):
            size = _fixed(x.shape[axis], asked, position)
            places = _coordinates(size, asked, position)
            outside = torch.from_numpy((places < 0) | (places > size - 1))
            shape = [1] * y.dim()
            shape[axis] = -1
            y = torch.where(outside.reshape(shape), torch.full([], asked.extrapolation, dtype=y.dtype), y)
    return to_type(y, dtype)


def _matrix(places: Any, size: int, scale: float, asked: _Resize) -> Any:
    """Return (result, input) weights of one axis."""
    stretch = min(scale, 1.0) if asked.antialias else 1.0
    radius = {"nearest": 1.0, "linear": 1.0, "cubic": 2.0}[asked.mode] / stretch
    if asked.mode == "nearest":
        chosen = np.clip(_rounded(places, asked.nearest), 0, size - 1).astype(np.int64)
        return np.eye(size)[chosen]
    matrix = np.zeros((len(places), size))
    for row, place in enumerate(places):
        taps = np.arange(math.floor(place - radius) + 1, math.ceil(place + radius) + 1)
        weights = _kernel((taps - place) * stretch, asked)
        if asked.antialias or asked.excludes_outside:
            if asked.excludes_outside:
                weights = np.where((taps >= 0) & (taps < size), weights, 0.0)
            weights = weights / weights.sum()
        np.add.at(matrix[row], np.clip(taps, 0, size - 1), weights)
    return matrix


def _kernel(distance: Any, asked: _Resize) -> Any:
    d = np.abs(distance)
    if asked.mode == "linear":
        return np.maximum(1 - d, 0)
    a = asked.cubic  # Keys 1981, equation 4
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
