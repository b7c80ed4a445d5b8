"""Sampling images at computed places, and windows of columns."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dsopt.frontend.onnx_reader.call import Call, to_type
from dsopt.frontend.onnx_reader.problems import MalformedError
from dsopt.frontend.onnx_reader.registry import operator

_MODES = {
    "bilinear": "bilinear",
    "linear": "bilinear",
    "nearest": "nearest",
    "bicubic": "bicubic",
    "cubic": "bicubic",
}


@operator("GridSample")
def grid_sample(call: Call) -> Tensor:
    """Sample an image at the points of a grid."""
    mode, padding = call.text("mode", "bilinear"), call.text("padding_mode", "zeros")
    if mode not in _MODES or padding not in ("zeros", "border", "reflection"):
        raise MalformedError(f"its mode is {mode!r} and its padding {padding!r}")
    aligned = bool(call.integer("align_corners", 0))
    return F.grid_sample(call.tensor(0), call.tensor(1), _MODES[mode], padding, aligned)


@operator("AffineGrid")
def affine_grid(call: Call) -> Tensor:
    """Make the grid of an affine map."""
    return F.affine_grid(call.tensor(0), call.numbers(1), bool(call.integer("align_corners", 0)))


@operator("Col2Im")
def column_to_image(call: Call) -> Tensor:
    """Add up windows that were laid out as columns."""
    image, block = tuple(call.numbers(1)), tuple(call.numbers(2))
    count = len(image)
    if count != 2:
        raise call.unsupported(f"Col2Im over {count} axes", "2 axes")
    pads = tuple(call.integers("pads") or [0] * (2 * count))
    dilations, strides = (tuple(call.integers(name) or [1] * count) for name in ("dilations", "strides"))
    if pads[:count] == pads[count:]:
        return F.fold(call.tensor(0), image, block, dilations, pads[:count], strides)
    padded = tuple(image[axis] + pads[axis] + pads[axis + count] for axis in range(count))
    whole = F.fold(call.tensor(0), padded, block, dilations, 0, strides)
    return whole[:, :, pads[0] : pads[0] + image[0], pads[1] : pads[1] + image[1]]


@operator("RoiAlign")
def roi_align(call: Call) -> Tensor:
    """Average or take the largest of bilinear samples in each cell of each region."""
    x, regions, batch = call.tensor(0), call.tensor(1), call.tensor(2)
    rows, columns = call.integer("output_height", 1), call.integer("output_width", 1)
    ratio = call.integer("sampling_ratio", 0)
    if ratio < 1:
        raise call.unsupported("RoiAlign whose number of samples depends on the regions", "sampling_ratio of 1 or more")
    half = call.version >= 16 and call.text("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    corners = regions * call.real("spatial_scale", 1.0) - (0.5 if half else 0.0)
    left, top, right, bottom = corners.unbind(1)
    width, height = right - left, bottom - top
    if not half:
        width, height = width.clamp(min=1.0), height.clamp(min=1.0)
    y, y_inside = _samples(top, height, rows, ratio, x.shape[2])
    x_, x_inside = _samples(left, width, columns, ratio, x.shape[3])
    planes = x.index_select(0, to_type(batch, torch.int64))
    values = _corner_values(call, planes, y, x_, y_inside.unsqueeze(2) & x_inside.unsqueeze(1))
    cells = values.reshape(*values.shape[:2], rows, ratio, columns, ratio)
    return cells.amax((3, 5)) if call.text("mode", "avg") == "max" else cells.mean((3, 5))


def _samples(start: Tensor, extent: Tensor, cells: int, ratio: int, size: int) -> tuple[Tensor, Tensor]:
    """Return the places sampled along an axis, and which of them are on the image."""
    steps = (torch.arange(cells * ratio, dtype=start.dtype) + 0.5) / ratio
    places = start.unsqueeze(1) + extent.unsqueeze(1) / cells * steps
    return places.clamp(0, size - 1), (places >= -1) & (places <= size)


def _corner_values(call: Call, planes: Tensor, y: Tensor, x: Tensor, inside: Tensor) -> Tensor:
    """Return bilinear samples (N, C, rows, columns); for the largest, ONNX takes it of the four weighted corners."""
    height, width = planes.shape[2:]
    low_y, low_x = y.floor(), x.floor()
    parts = []
    for row, row_weight in ((low_y, 1 - (y - low_y)), ((low_y + 1).clamp(max=height - 1), y - low_y)):
        for column, column_weight in ((low_x, 1 - (x - low_x)), ((low_x + 1).clamp(max=width - 1), x - low_x)):
            index = (row.to(torch.int64) * width).unsqueeze(2) + column.to(torch.int64).unsqueeze(1)
            taken = planes.flatten(2).gather(2, index.flatten(1).unsqueeze(1).expand(-1, planes.shape[1], -1))
            weight = (row_weight.unsqueeze(2) * column_weight.unsqueeze(1)).unsqueeze(1)
            parts.append(taken.reshape(*planes.shape[:2], *index.shape[1:]) * weight)
    stacked = torch.stack(parts)
    values = stacked.amax(0) if call.text("mode", "avg") == "max" else stacked.sum(0)
    return torch.where(inside.unsqueeze(1), values, torch.zeros_like(values))
