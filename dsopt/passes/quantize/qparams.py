"""From ranges and weights to scales and zero points, and what cannot be given one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsopt.ops.quantized import GROUP_LEVELS, SMALLEST_SCALE, effective_scale, round_to_grid, spread_scale

_SCALE_OF_ZEROS = 2.0**-10
"""Of a weight that is zero everywhere."""

_SHRINK = torch.linspace(1.0, 0.5, 51)
"""Shares of the largest magnitude that a search for the least error tries."""


@dataclass(frozen=True)
class Grid:
    """Integers low..high, and how a real number is written with them: scale * (q - zero_point). notes: what a user should know."""

    scale: float
    zero_point: int
    low: int
    high: int
    notes: tuple[str, ...] = ()


def integer_range(bits: int) -> tuple[int, int]:
    """Return the integers of an activation."""
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def activation_grid(low: float, high: float, bits: int, power_of_two: bool) -> Grid:
    """Return the grid of a value that lies in low..high, made to hold 0 exactly.

    8 bits: asymmetric.  16 bits: symmetric, zero point 0.  A range of no width gets the step that holds its one value exactly at the
    end of the integers, or 1 for the value 0.
    """
    least, largest = integer_range(bits)
    low, high = min(low, 0.0), max(high, 0.0)
    notes: list[str] = []
    span = high - low if bits == 8 else 2 * max(high, -low)
    scale = span / (largest - least) if span > 0 else 1.0
    if span == 0:
        notes.append("it was always 0 in the calibration data")
    elif scale < SMALLEST_SCALE:
        notes.append(
            f"its range {low:.3g} to {high:.3g} has steps too small for float32; they were set to {SMALLEST_SCALE:.3g}"
        )
        scale = SMALLEST_SCALE
    if power_of_two:
        scale = 2.0 ** torch.ceil(torch.log2(torch.tensor(scale, dtype=torch.float64))).item()
    scale = float(torch.tensor(scale, dtype=torch.float32))
    zero_point = 0 if bits == 16 else int(min(max(round(least - low / scale), least), largest))
    return Grid(scale, zero_point, least, largest, tuple(notes))


@dataclass(frozen=True)
class WeightGrid:
    """A symmetric grid of a weight: scale as `dsopt.ops.quantized.spread_scale` takes it. dead: channels that are all zeros."""

    scale: Tensor
    axis: int
    group: int
    low: int
    high: int
    dead: int = 0


def weight_grid(
    weight: Tensor, axis: int, bits: int, *, per: str, group: int, search: bool, power_of_two: bool
) -> WeightGrid:
    """Return the grid of a weight: per "tensor", "channel" along `axis`, or "group" of `group` inputs of a channel (axis 0).

    search: take the step of least squared error instead of the one that holds the largest magnitude.  A channel of zeros gets the
    least scale of the others, because its bias is rounded to steps of that.
    """
    high = (1 << (bits - 1)) - 1
    values = weight.detach().double()
    if per == "tensor":
        rows = values.reshape(1, 1, -1)
    elif per == "group":
        count = -(-values.shape[1] // group)
        padded = torch.zeros(values.shape[0], count * group, *values.shape[2:], dtype=torch.float64)
        padded[:, : values.shape[1]] = values
        rows = padded.reshape(values.shape[0], count, -1)
    else:
        rows = values.movedim(axis, 0).reshape(values.shape[axis], 1, -1)
    largest = rows.abs().amax(-1)
    scale = _least_error(rows, largest / high, high) if search else largest / high
    is_dead = largest == 0
    if per == "group":  # a dead group takes the smallest step of its channel, so that it does not coarsen the others
        step = scale.amax(-1, keepdim=True) / GROUP_LEVELS
        scale = torch.where(is_dead, step, scale)
    least = scale[scale > 0].min() if bool((scale > 0).any()) else torch.tensor(_SCALE_OF_ZEROS)
    scale = torch.where(scale > 0, scale, least).float()
    shaped = scale.reshape(()) if per == "tensor" else scale if per == "group" else scale.reshape(-1)
    if power_of_two:
        shaped = torch.exp2(torch.ceil(torch.log2(shaped)))
    used_group = group if per == "group" else 0
    shaped = effective_scale(shaped, used_group, power_of_two)
    return WeightGrid(shaped, axis, used_group, -high, high, int(is_dead.all(-1).sum()))


def _least_error(rows: Tensor, scale: Tensor, high: int) -> Tensor:
    """Return for each row the step, among shares of the given one, with the least squared error. rows: (N, G, K); scale: (N, G)."""
    best, least = scale, torch.full_like(scale, torch.inf)
    for share in _SHRINK.tolist():
        step = (scale * share).clamp_min(torch.finfo(torch.float64).tiny)
        rounded = torch.clamp(torch.round(rows / step[..., None]), -high, high) * step[..., None]
        error = ((rows - rounded) ** 2).sum(-1)
        best, least = torch.where(error < least, step, best), torch.minimum(error, least)
    return best


def quantized_weight(weight: Tensor, scale: Tensor, axis: int, group: int, low: int, high: int) -> Tensor:
    """Return the int8 (or int16, int32) values of a weight, by the rule that training has seen."""
    steps = spread_scale(scale, weight.shape, axis, group)
    values = round_to_grid(weight.detach().float(), steps, torch.zeros(()), low, high)
    return values.to(torch.int8 if high < 1 << 7 else torch.int16 if high < 1 << 15 else torch.int32)
