"""Convolutions, linear layers, matrix products and embeddings on integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx

from dsopt.ir.convolution import convolution
from dsopt.ops.rounding import common_factors
from dsopt.passes.quantize.integer.values import Array, Lowering, Output, Real, StaysFloatError, Stored

_DSOPT = torch.ops.dsopt


def _bound(weight: Stored, factors: Array | None, x: Real, bias: Array | None, channel_axis: int) -> int:
    """Return the largest magnitude that a sum of products can have, with these weights and any input."""
    values = np.abs(weight.values)
    if factors is not None:
        spread = np.repeat(factors.astype(np.int64), weight.group, 1)[:, : values.shape[1]]
        values = values * spread.reshape(*spread.shape, *[1] * (values.ndim - 2))
    sums = values.sum(tuple(axis for axis in range(values.ndim) if axis != channel_axis)) * x.largest
    largest = int(sums.max(initial=0))
    return largest + (0 if bias is None else int(np.abs(bias).max(initial=0)))


def lower_convolution(lowering: Lowering, node: fx.Node, out: Output) -> fx.Node:
    """conv(dequantize(x), dequantize_channel(w), b) -> q_conv"""
    conv = convolution(node)
    x, weight = lowering.need(conv.x), lowering.stored(conv.weight)
    if weight.scale.ndim and weight.axis % weight.values.ndim != conv.channel_axis:
        raise StaysFloatError("the scales of its weight run along another axis than its channels")
    if len(conv.stride) > 2:
        raise StaysFloatError("convolutions in three dims have no integer form here")
    channels = weight.values.shape[1] * conv.groups if conv.transposed else weight.values.shape[0]
    scale = lowering.channel_scale(weight, channels)
    bias = lowering.bias(conv.bias, x.scale * scale)
    factors = lowering.factors(weight) if weight.group else None
    wide = lowering.is_wide(_bound(weight, factors, x, bias, conv.channel_axis), node)
    multipliers = lowering.multipliers(weight.name, x.scale * scale / out.scale, node, wide)
    kept = None if bias is None else lowering.constant(f"{weight.name}.bias", bias.astype(np.int32))
    stored, spread, group, shape, bits = lowering.weight_arguments(weight)
    return lowering.call(
        _DSOPT.q_conv.default, x.q, stored, kept, *multipliers, spread, group, shape, bits, *conv.geometry, x.zero, *out.tail, wide,
        like=out.like,
    )  # fmt: skip


def lower_linear(lowering: Lowering, node: fx.Node, out: Output) -> fx.Node:
    """linear(dequantize(x), dequantize_channel(w), b) -> q_linear"""
    x, weight = lowering.need(node.args[0]), lowering.stored(node.args[1])
    given: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    scale = lowering.channel_scale(weight, weight.values.shape[0])
    bias = lowering.bias(given, x.scale * scale)
    factors = lowering.factors(weight) if weight.group else None
    wide = lowering.is_wide(_bound(weight, factors, x, bias, 0), node)
    multipliers = lowering.multipliers(weight.name, x.scale * scale / out.scale, node, wide)
    kept = None if bias is None else lowering.constant(f"{weight.name}.bias", bias.astype(np.int32))
    stored, spread, group, shape, bits = lowering.weight_arguments(weight)
    return lowering.call(
        _DSOPT.q_linear.default, x.q, stored, kept, *multipliers, spread, group, shape, bits, x.zero, *out.tail, wide, like=out.like
    )  # fmt: skip


def lower_matmul(lowering: Lowering, node: fx.Node, out: Output) -> fx.Node:
    """matmul(dequantize(a), dequantize(b)) -> q_matmul"""
    a, b = lowering.need(node.args[0]), lowering.need(node.args[1])
    depth = node.args[0].meta["val"].shape[-1]  # type: ignore[union-attr]
    if not isinstance(depth, int):
        depth = 1 << 15  # attention over a length that varies; no artifact has longer rows
    wide = lowering.is_wide(depth * a.largest * b.largest, node)
    multiplier, shift = lowering.multiplier(np.array([a.scale * b.scale / out.scale]), wide)
    return lowering.call(
        _DSOPT.q_matmul.default,
        a.q,
        b.q,
        a.zero,
        b.zero,
        int(multiplier[0]),
        int(shift[0]),
        *out.tail,
        wide,
        like=out.like,
    )


def lower_embedding(lowering: Lowering, node: fx.Node, out: Output) -> fx.Node:
    """embedding(dequantize_channel(w), ids) -> q_embedding, each row rescaled"""
    weight = lowering.stored(node.args[0])
    scale = lowering.channel_scale(weight, weight.values.shape[0])
    try:
        factors, shift = common_factors([float(each) / out.scale for each in scale])
    except ValueError as problem:
        raise StaysFloatError(f"its rows have far larger steps than its result: {problem}") from problem
    rows = lowering.constant(f"{weight.name}.row_factors", np.array(factors, np.int32))
    stored, spread, group, shape, bits = lowering.weight_arguments(weight)
    return lowering.call(
        _DSOPT.q_embedding.default, node.args[1], stored, rows, spread, group, shape, bits, shift, *out.tail, like=out.like
    )  # fmt: skip


def embedding_on_its_grid(lowering: Lowering, node: fx.Node) -> Real | None:
    """Return the integers that an embedding takes from a table with one scale; None if it has more, or is float."""
    try:
        weight = lowering.stored(node.args[0])
    except StaysFloatError:
        return None
    if weight.scale.ndim or weight.bits != 8:
        return None
    stored, spread, group, shape, bits = lowering.weight_arguments(weight)
    q = lowering.call(
        _DSOPT.q_embedding.default, node.args[1], stored, None, spread, group, shape, bits, 0, 0, -128, 127, 8, like=node
    )  # fmt: skip
    return Real(q, float(weight.scale), 0, 8)
