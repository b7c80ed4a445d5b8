"""Convolutions and their transposes in one to three dimensions, with padding of any kind."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from dsopt.frontend.onnx_reader.call import Call
from dsopt.frontend.onnx_reader.problems import MalformedError
from dsopt.frontend.onnx_reader.registry import operator
from dsopt.frontend.onnx_reader.sizes import larger

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
MAX_ATTRIBUTE = 2**20
"""Strides and the like above this are damage, and torch would count to them."""
TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


def per_axis(call: Call, name: str, count: int, default: int = 1) -> list[int]:
    """Return an attribute of one int for each spatial axis. Raises MalformedError if it has another length."""
    found = call.integers(name)
    if not found:
        return [default] * count
    if len(found) != count:
        raise MalformedError(f"attribute {name!r} has {len(found)} elements for {count} axes")
    if not all(default <= item < MAX_ATTRIBUTE for item in found):
        raise MalformedError(f"attribute {name!r} is {found}")
    return found


def paddings(
    call: Call, x: Tensor, kernel: list[int], strides: list[int], dilations: list[int]
) -> tuple[list[Any], list[Any]]:
    """Return the padding before and after each spatial axis; it depends on the input's size for SAME with a stride."""
    count, mode = len(kernel), call.text("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        pads = call.integers("pads") or [0] * (2 * count)
        if len(pads) != 2 * count:
            raise MalformedError(f"attribute 'pads' has {len(pads)} elements for {count} axes")
        return pads[:count], pads[count:]
    if mode == "VALID":
        return [0] * count, [0] * count
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise MalformedError(f"attribute 'auto_pad' is {mode!r}")
    before, after = [], []
    for axis in range(count):
        size, extent = x.shape[axis + 2], (kernel[axis] - 1) * dilations[axis] + 1
        if strides[axis] == 1:
            total: Any = extent - 1
        else:
            outputs = (size + strides[axis] - 1) // strides[axis]
            total = larger((outputs - 1) * strides[axis] + extent - size, 0)
        half = total // 2
        before.append(half if mode == "SAME_UPPER" else total - half)
        after.append(total - half if mode == "SAME_UPPER" else half)
    return before, after


def pad_spatial(x: Tensor, before: list[Any], after: list[Any], value: float = 0.0) -> Tensor:
    """Pad the spatial axes of (B, C, ...) with a constant; negative amounts crop."""
    if _is_zero(before) and _is_zero(after):
        return x
    widths = [width for pair in zip(reversed(before), reversed(after), strict=True) for width in pair]
    return F.pad(x, widths, value=value)


def _is_zero(amounts: list[Any]) -> bool:
    return all(isinstance(amount, int) and amount == 0 for amount in amounts)


def is_symmetric(before: list[Any], after: list[Any]) -> bool:
    """Tell whether both ends have the same fixed, non-negative padding, which torch's operators take themselves."""
    pairs = zip(before, after, strict=True)
    return all(isinstance(b, int) and isinstance(a, int) and a == b and b >= 0 for b, a in pairs)


def spatial_count(call: Call, x: Tensor, weight: Tensor) -> int:
    """Return the number of spatial axes. Raises UnsupportedFormError outside 1 to 3."""
    count = x.dim() - 2
    if weight.dim() != x.dim():
        raise MalformedError(f"its weight has {weight.dim()} axes and its input {x.dim()}")
    if not 1 <= count <= 3:
        raise call.unsupported(f"{call.node.op} over {count} spatial axes", "1 to 3 spatial axes")
    return count


@operator("Conv")
def convolution(call: Call) -> Tensor:
    """Convolve."""
    return convolve(call, call.tensor(0), call.tensor(1), call.optional(2))


def convolve(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve as the attributes of Conv say."""
    count = spatial_count(call, x, weight)
    strides, dilations = per_axis(call, "strides", count), per_axis(call, "dilations", count)
    before, after = paddings(call, x, [int(size) for size in weight.shape[2:]], strides, dilations)
    padding = before
    if not is_symmetric(before, after):
        x, padding = pad_spatial(x, before, after), [0] * count
    return CONVOLUTIONS[count - 1](x, weight, bias, strides, padding, dilations, call.integer("group", 1))


@operator("ConvTranspose")
def transposed_convolution(call: Call) -> Tensor:
    """Convolve the transpose, then crop or extend to the size that was asked for."""
    x, weight, bias = call.tensor(0), call.tensor(1), call.optional(2)
    count = spatial_count(call, x, weight)
    strides, dilations = per_axis(call, "strides", count), per_axis(call, "dilations", count)
    extra, groups = per_axis(call, "output_padding", count, 0), call.integer("group", 1)
    before, after = _transposed_paddings(call, x, weight, strides, dilations, extra)
    function = TRANSPOSED[count - 1]
    fits = all(extra[axis] < max(strides[axis], dilations[axis]) for axis in range(count))
    if is_symmetric(before, after) and fits:
        return function(x, weight, bias, strides, before, extra, groups, dilations)
    y = function(x, weight, None, strides, 0, 0, groups, dilations)
    trimmed = [extra[axis] - after[axis] for axis in range(count)]
    y = pad_spatial(y, [-amount for amount in before], trimmed)
    return y if bias is None else y + bias.reshape([-1] + [1] * count)


def _transposed_paddings(
    call: Call, x: Tensor, weight: Tensor, strides: list[int], dilations: list[int], extra: list[int]
) -> tuple[list[Any], list[Any]]:
    count, mode = len(strides), call.text("auto_pad", "NOTSET")
    wanted = call.integers("output_shape")
    if not wanted and mode in ("NOTSET", "", "VALID"):
        pads = call.integers("pads") if mode != "VALID" else None
        pads = pads or [0] * (2 * count)
        if len(pads) != 2 * count:
            raise MalformedError(f"attribute 'pads' has {len(pads)} elements for {count} axes")
        return pads[:count], pads[count:]
    before, after = [], []
    for axis in range(count):
        size, extent = x.shape[axis + 2], (int(weight.shape[axis + 2]) - 1) * dilations[axis] + 1
        result = wanted[-count:][axis] if wanted else size * strides[axis]
        total = strides[axis] * (size - 1) + extra[axis] + extent - result
        half = total // 2
        before.append(half if mode == "SAME_UPPER" else total - half)
        after.append(total - half if mode == "SAME_UPPER" else half)
    return before, after
