"""Padding and cropping."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dsopt.frontend.onnx_reader.call import Call, axis_in
from dsopt.frontend.onnx_reader.problems import MalformedError
from dsopt.frontend.onnx_reader.registry import operator


@operator("Pad")
def pad(call: Call) -> Tensor:
    """Pad each axis with a constant, the edge, a mirror image or the other end; negative amounts crop."""
    x, mode = call.tensor(0), call.text("mode", "constant")
    amounts = call.numbers(1) if call.version >= 11 else call.integers("pads") or call.integers("paddings") or []
    axes = [axis_in(int(axis), x.dim()) for axis in call.numbers(3)] if call.has(3) else list(range(x.dim()))
    if len(amounts) != 2 * len(axes):
        raise MalformedError(f"it has {len(amounts)} amounts for {len(axes)} axes")
    before: list[Any] = [0] * x.dim()
    after: list[Any] = [0] * x.dim()
    for position, axis in enumerate(axes):
        before[axis], after[axis] = amounts[position], amounts[position + len(axes)]
    if mode == "constant":
        value = call.number(2, 0) if call.version >= 11 else call.real("value", 0.0)
        return _constant(x, before, after, value)
    if mode not in ("edge", "reflect", "wrap"):
        raise MalformedError(f"attribute 'mode' is {mode!r}")
    return _from_itself(call, x, before, after, mode)


def _constant(x: Tensor, before: list[Any], after: list[Any], value: Any) -> Tensor:
    padded = [axis for axis in range(x.dim()) if not _is_zero(before[axis]) or not _is_zero(after[axis])]
    if not padded:
        return x
    widths = [width for axis in reversed(range(padded[0], x.dim())) for width in (before[axis], after[axis])]
    if x.dtype == torch.bool:
        return F.pad(x.to(torch.uint8), widths, value=int(value)).to(torch.bool)
    return F.pad(x, widths, value=value)


def _from_itself(call: Call, x: Tensor, before: list[Any], after: list[Any], mode: str) -> Tensor:
    """Pad with the input's own elements: by torch's operator on the last axes of an image, else by index."""
    padded = [axis for axis in range(x.dim()) if not _is_zero(before[axis]) or not _is_zero(after[axis])]
    if not padded:
        return x
    last = x.dim() - padded[0]
    fits = 1 <= last <= 3 and last + 1 <= x.dim() <= last + 2 and x.is_floating_point()
    amounts = [*before, *after]
    if fits and all(isinstance(amount, int) and amount >= 0 for amount in amounts):
        limit = {"reflect": 1, "wrap": 0}.get(mode)
        widest = all(
            limit is None or max(before[axis], after[axis]) <= x.shape[axis] - limit
            for axis in range(padded[0], x.dim())
        )
        if widest:
            widths = [width for axis in reversed(range(padded[0], x.dim())) for width in (before[axis], after[axis])]
            return F.pad(x, widths, mode={"edge": "replicate", "reflect": "reflect", "wrap": "circular"}[mode])
    for axis in padded:
        x = x.index_select(axis, _places(x.shape[axis], before[axis], after[axis], mode))
    return x


def _places(size: Any, before: Any, after: Any, mode: str) -> Tensor:
    """Return which element of an axis stands at each place of the padded one."""
    index = torch.arange(-before, size + after)
    if mode == "edge":
        return index.clamp(0, size - 1)
    if mode == "wrap":
        return torch.remainder(index, size)
    period: Any = 2 * (size - 1)
    if isinstance(period, int) and period == 0:
        return torch.zeros_like(index)
    folded = torch.remainder(index, period)
    mirrored: Tensor = period - folded
    return torch.where(folded < size, folded, mirrored)


def _is_zero(amount: Any) -> bool:
    return isinstance(amount, int) and amount == 0


@operator("CenterCropPad")
def center_crop_pad(call: Call) -> Tensor:
    """Crop or pad axes around their centres to given sizes."""
    x, sizes = call.tensor(0), call.numbers(1)
    axes = call.integers("axes") or list(range(x.dim()))
    if len(axes) != len(sizes):
        raise MalformedError(f"it has {len(sizes)} sizes for {len(axes)} axes")
    for position, wanted in enumerate(sizes):
        axis = axis_in(axes[position], x.dim())
        size = x.shape[axis]
        if wanted < size:
            x = x.narrow(axis, (size - wanted) // 2, wanted)
        elif wanted > size:
            before: list[Any] = [0] * x.dim()
            after: list[Any] = [0] * x.dim()
            before[axis] = (wanted - size) // 2
            after[axis] = wanted - size - before[axis]
            x = _constant(x, before, after, 0)
    return x
