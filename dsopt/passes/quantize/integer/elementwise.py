"""Sums, products, joined parts and functions of one value on integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from dsopt.ops.integer.elementwise import TABLE_STEP
from dsopt.ops.rounding import ACCUMULATOR_LIMIT, common_factors
from dsopt.passes.quantize.integer.values import Array, Lowering, Output, Real, StaysFloatError

_ATEN = torch.ops.aten
_DSOPT = torch.ops.dsopt

_TABLE_BITS = 7
"""Bits below a step of the result that the tables of 16-bit inputs keep."""


def _common(factors: Sequence[float]) -> tuple[list[int], int]:
    try:
        return common_factors(factors)
    except ValueError as problem:
        raise StaysFloatError(f"its inputs have far larger steps than its result: {problem}") from problem


def lower_sum(lowering: Lowering, node: fx.Node, out: Output) -> fx.Node:
    """add(dequantize(a), dequantize(b)) -> q_add, sub with a negative factor"""
    a, b = lowering.need(node.args[0]), lowering.need(node.args[1])
    sign = -1 if node.target is _ATEN.sub.Tensor else 1
    (first, second), shift = _common([a.scale / out.scale, sign * b.scale / out.scale])
    return lowering.call(_DSOPT.q_add.default, a.q, b.q, a.zero, b.zero, first, second, shift, *out.tail, like=out.like)


def lower_product(lowering: Lowering, node: fx.Node, out: Output) -> fx.Node:
    """mul(dequantize(a), dequantize(b)) -> q_mul"""
    a, b = lowering.need(node.args[0]), lowering.need(node.args[1])
    wide = a.largest * b.largest >= ACCUMULATOR_LIMIT
    multiplier, shift = lowering.multiplier(np.array([a.scale * b.scale / out.scale]), wide)
    return lowering.call(
        _DSOPT.q_mul.default, a.q, b.q, a.zero, b.zero, int(multiplier[0]), int(shift[0]), *out.tail, like=out.like
    )


def rescale(lowering: Lowering, x: Real, out: Output) -> fx.Node:
    """Write integers on the grid of `out`: as they are if they are on it."""
    half = 1 << (out.bits - 1)
    if (x.scale, x.zero, x.bits) == (out.scale, out.zero, out.bits) and (out.low, out.high) == (-half, half - 1):
        return x.q
    (factor,), shift = _common([x.scale / out.scale])
    return lowering.call(_DSOPT.q_rescale.default, x.q, x.zero, factor, shift, *out.tail, like=out.like)


def lower_concat(lowering: Lowering, node: fx.Node, out: Output) -> fx.Node:
    """cat([dequantize(a), dequantize(b)]) -> cat([a, q_rescale(b)])"""
    parts: Any = node.args[0]
    reals = [lowering.need(part) for part in parts]
    return lowering.call(
        _ATEN.cat.default, [rescale(lowering, part, out) for part in reals], *node.args[1:], like=out.like
    )


def lower_choice(lowering: Lowering, node: fx.Node, out: Output) -> fx.Node:
    """where(c, dequantize(a), dequantize(b)) -> where(c, a, q_rescale(b))"""
    parts = [rescale(lowering, lowering.need(part), out) for part in node.args[1:3]]
    return lowering.call(_ATEN.where.self, node.args[0], *parts, like=out.like)


def lower_unary(lowering: Lowering, node: fx.Node, out: Output) -> fx.Node:
    """f(dequantize(x)) -> q_lookup(x, table of f)"""
    source = next(each for each in node.all_input_nodes)
    x = lowering.need(source)
    name = f"{lowering.program.layer(node) or node.name}.{str(node.target).split('.')[1]}_table"
    if x.bits == 8:
        table, shift = _exact_table(node, source, x, out), 0
    else:
        table, shift = _interpolated_table(node, source, x, out), _TABLE_BITS
    return lowering.call(_DSOPT.q_lookup.default, x.q, lowering.constant(name, table), shift, *out.tail, like=out.like)


def _applied(node: fx.Node, source: fx.Node, values: Tensor) -> Tensor:
    args: Any = fx.node.map_arg(node.args, lambda item: values if item is source else item)
    result: Tensor = node.target(*args, **node.kwargs)  # type: ignore[operator]
    return result


def _exact_table(node: fx.Node, source: fx.Node, x: Real, out: Output) -> Array:
    real = _DSOPT.dequantize(torch.arange(-128, 128, dtype=torch.int32).to(torch.int8), x.scale, x.zero)
    steps = _DSOPT.quantize(_applied(node, source, real), out.scale, out.zero, -32768, 32767)
    table: Array = steps.clamp(out.low, out.high).numpy().astype(np.int8 if out.bits == 8 else np.int16)
    return table


def _interpolated_table(node: fx.Node, source: fx.Node, x: Real, out: Output) -> Array:
    places = torch.arange(513, dtype=torch.float64) * TABLE_STEP - 32768
    values = _applied(node, source, (places - x.zero) * x.scale).numpy()
    limit = (1 << 15 + _TABLE_BITS) - 1
    steps = np.rint(np.nan_to_num(values / out.scale * (1 << _TABLE_BITS), posinf=limit, neginf=-limit))
    clipped: Array = np.clip(steps, -limit, limit).astype(np.int32)
    return clipped
