"""Averages, softmax and layer normalisation on integers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import fx

from dsopt.ops.integer.normalization import FINE_BITS, NORM_BITS, NORM_ELEMENTS
from dsopt.ops.rounding import ACCUMULATOR_LIMIT
from dsopt.passes.quantize.integer.elementwise import rescale
from dsopt.passes.quantize.integer.values import Array, Lowering, Output, Real, StaysFloatError
from dsopt.passes.quantize.semantics import SOFTMAX_GRID, softmax_scores

_ATEN = torch.ops.aten
_DSOPT = torch.ops.dsopt

_SUM_BITS = 30
"""Sums of powers stay below 2 to this."""

_POWER_BITS = 22
"""Bits after the point of a power: times 256, it fits int32."""

_EXTRA_BITS = 16
"""Bits below a step that a normalised value keeps until it is rounded: rounding twice moves it by 2 to minus this, and so does the
rounding of its shift. With 8, one result in 560 of a trained transformer was not that of floats, and always the higher."""


# ---- averages ----


def _check_sum(elements: int, x: Real) -> None:
    if elements * x.largest >= ACCUMULATOR_LIMIT:
        raise StaysFloatError("it averages over too many elements")


def lower_average(lowering: Lowering, node: fx.Node, out: Output) -> fx.Node:
    """avg_pool2d(dequantize(x)) -> q_avg_pool; mean(dequantize(x)) -> q_mean"""
    x = lowering.need(node.args[0])
    if node.target in (_ATEN.mean.dim, _ATEN.mean.default):
        return _mean(lowering, node, x, out)
    kernel, stride, padding, ceil_mode, count_pad, divisor = _window(node)
    most = math.prod(kernel)
    _check_sum(most, x)
    counts = np.maximum(np.arange(most + 1), 1) if divisor is None else np.full(most + 1, divisor)
    name = f"{lowering.program.layer(node) or node.name}.average"
    multipliers = lowering.multipliers(name, x.scale / out.scale / counts, node)
    window = (kernel, stride, padding, ceil_mode, count_pad)
    return lowering.call(_DSOPT.q_avg_pool.default, x.q, *multipliers, *window, x.zero, *out.tail, like=out.like)


def _window(node: fx.Node) -> tuple[list[int], list[int], list[int], bool, bool, int | None]:
    args: tuple[Any, ...] = node.args
    sizes = args[0].meta["val"].shape
    if node.target in (_ATEN.adaptive_avg_pool1d.default, _ATEN.adaptive_avg_pool2d.default):
        rank = len(args[1])
        kernel = [int(size) // int(count) for size, count in zip(sizes[-rank:], args[1], strict=True)]
        return kernel, kernel, [0] * rank, False, True, None
    rank = 1 if node.target is _ATEN.avg_pool1d.default else 2
    given = [*args[1:], *[None] * 6][:6]
    kernel, stride, padding = (_each(item, rank) for item in given[:3])
    count_pad = True if given[4] is None else bool(given[4])
    return kernel, stride or kernel, padding or [0] * rank, bool(given[3]), count_pad, given[5]


def _each(value: Any, rank: int) -> list[int]:
    if value is None:
        return []
    numbers = [value] if isinstance(value, int) else list(value)
    return numbers * rank if len(numbers) == 1 else numbers


def _mean(lowering: Lowering, node: fx.Node, x: Real, out: Output) -> fx.Node:
    shape = node.args[0].meta["val"].shape  # type: ignore[union-attr]
    given: Any = node.args[1] if len(node.args) > 1 else None
    dims = list(range(len(shape))) if not given else [dim % len(shape) for dim in given]
    count = math.prod(int(shape[dim]) for dim in dims)
    _check_sum(count, x)
    keepdim = bool(node.args[2]) if len(node.args) > 2 else bool(node.kwargs.get("keepdim", False))
    multiplier, shift = lowering.multiplier(np.array([x.scale / out.scale / count]))
    numbers = (int(multiplier[0]), int(shift[0]), x.zero)
    return lowering.call(_DSOPT.q_mean.default, x.q, dims, keepdim, *numbers, *out.tail, like=out.like)


# ---- softmax ----


def lower_softmax(lowering: Lowering, node: fx.Node, out: Output) -> fx.Node:
    """softmax(where(mask, dequantize(x) * c, -inf)) -> q_softmax(x, tables, mask)"""
    scores = softmax_scores(node)
    x = lowering.need(scores.source)
    axis: Any = node.args[1]
    size = node.meta["val"].shape[axis]
    length = size if isinstance(size, int) else 1 << 12
    power_bits = min(_POWER_BITS, _SUM_BITS - max(length - 1, 1).bit_length())
    if power_bits < 10:
        raise StaysFloatError(f"it has {length:,} elements in a row")
    step = x.scale * scores.factor
    tables: list[fx.Node | None] = [_powers(lowering, node, step * (1 if x.bits == 8 else 256), power_bits, "coarse")]
    tables.append(None if x.bits == 8 else _powers(lowering, node, step, FINE_BITS, "fine"))
    q = lowering.call(_DSOPT.q_softmax.default, x.q, *tables, scores.mask, axis, out.bits, like=out.like)
    made = Real(q, *(SOFTMAX_GRID if out.bits == 8 else (2.0**-15, 0)), out.bits)
    return rescale(lowering, made, out)


def _powers(lowering: Lowering, node: fx.Node, step: float, bits: int, name: str) -> fx.Node:
    values = np.rint(np.exp(-np.arange(256) * step) * (1 << bits)).astype(np.int32)
    return lowering.constant(f"{lowering.program.layer(node) or node.name}.exp_{name}", values)


# ---- layer normalisation ----


def lower_norm(lowering: Lowering, node: fx.Node, out: Output) -> fx.Node:
    """layer_norm(dequantize(x), shape, g, b, e) -> q_layer_norm"""
    x = lowering.need(node.args[0])
    given: tuple[Any, ...] = (*node.args, *[None] * 5)
    sizes, gamma, beta = given[1:4]
    epsilon = 1e-5 if given[4] is None else float(given[4])
    count = math.prod(int(size) for size in sizes)
    if count >= NORM_ELEMENTS:
        raise StaysFloatError(f"it normalises {count:,} elements at once")
    scale = _stored(lowering, gamma, count, 1.0) / out.scale
    shift = _stored(lowering, beta, count, 0.0) / out.scale
    bits, shift_bits = (max(math.frexp(float(np.abs(each).max()))[1], 0) for each in (scale, shift))
    extra = min(_EXTRA_BITS, NORM_BITS - 1 - bits, 30 - shift_bits)
    if extra < 0:
        raise StaysFloatError("its result has steps that are too small for its scale or shift")
    name = lowering.program.layer(node) or node.name
    factors = np.rint(scale * 2.0 ** (31 - NORM_BITS + extra)).astype(np.int64).clip(1 - (1 << 31), (1 << 31) - 1)
    multiplier = lowering.constant(f"{name}.multiplier", factors.astype(np.int32))
    offset = lowering.constant(f"{name}.offset", np.rint(shift * (1 << extra)).astype(np.int32))
    guard = int(min(max(round(epsilon * count * count / x.scale**2), 1), 1 << 59))
    return lowering.call(
        _DSOPT.q_layer_norm.default, x.q, multiplier, offset, count, guard, extra, *out.tail, like=out.like
    )


def _stored(lowering: Lowering, node: Any, count: int, default: float) -> Array:
    if node is None:
        return np.full(count, default)
    values = lowering.program.weight(node)
    if values is None:
        raise StaysFloatError("its scale or shift is computed, not stored")
    result: Array = values.detach().double().reshape(-1).numpy()
    return result
