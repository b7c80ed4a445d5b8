"""Carry dequantize past operators that only move values, or keep their order: move(dequantize(q)) -> dequantize(move(q))."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from dsopt.passes.quantize.integer.values import Lowering, Real
from dsopt.passes.quantize.semantics import is_move

_ATEN = torch.ops.aten
_DSOPT = torch.ops.dsopt

_BYPASSED = {_ATEN.dropout.default, _ATEN.feature_dropout.default, _ATEN.alpha_dropout.default, _ATEN.clone.default,
             _ATEN.contiguous.default, _ATEN.alias.default, _ATEN.detach.default}  # fmt: skip
_POOLS: dict[Any, int] = {_ATEN.max_pool1d.default: 1, _ATEN.max_pool2d.default: 2}
_ADAPTIVE: dict[Any, int] = {_ATEN.adaptive_max_pool1d.default: 1, _ATEN.adaptive_max_pool2d.default: 2}
_NEAREST = {_ATEN.upsample_nearest1d.vec, _ATEN.upsample_nearest2d.vec, _ATEN.upsample_nearest1d.default,
            _ATEN.upsample_nearest2d.default}  # fmt: skip
_PADS = {_ATEN.constant_pad_nd.default: 2, _ATEN.pad.default: 3}
_ORDERED = {_ATEN.argmax.default, _ATEN.argmin.default}
_EXTREMES = {_ATEN.amax.default, _ATEN.amin.default}


def carry(lowering: Lowering, node: fx.Node) -> None:
    """Rewrite one node if its first argument is a dequantize that can go past it."""
    source: Any = node.args[0] if node.args else None
    x = lowering.real(source)
    if x is None or node.op != "call_function":
        return
    if node.target in _ORDERED:
        lowering.rewriter.replace(node, lowering.call(node.target, x.q, *node.args[1:], like=node))
    elif node.target in _EXTREMES:
        _replace(lowering, node, x, lowering.call(node.target, x.q, *node.args[1:], like=node))
    elif is_move(node):
        _carry_move(lowering, node, x)


def _carry_move(lowering: Lowering, node: fx.Node, x: Real) -> None:
    rest, rewriter = node.args[1:], lowering.rewriter
    if node.target in _BYPASSED:
        rewriter.replace(node, node.args[0])  # type: ignore[arg-type]
    elif node.target is _ATEN.relu.default:
        low = lowering.call(_ATEN.clamp_min.default, x.q, x.zero, like=node)
        _replace(lowering, node, x, low)
    elif node.target in _POOLS:
        _replace(lowering, node, x, _max_pool(lowering, node, x))
    elif node.target in _ADAPTIVE:
        _adaptive_pool(lowering, node, x)
    elif node.target in _NEAREST:
        _upsample(lowering, node, x)
    elif node.target in _PADS:
        widths: Any = rest[0]
        _replace(lowering, node, x, lowering.call(_ATEN.constant_pad_nd.default, x.q, widths, x.zero, like=node))
    elif isinstance(node.meta["val"], Tensor):
        _replace(lowering, node, x, lowering.rewriter.call(node.target, x.q, *rest, like=node, **node.kwargs))  # type: ignore[arg-type]
    else:
        parts = lowering.rewriter.call(node.target, x.q, *rest, like=node, **node.kwargs)  # type: ignore[arg-type]
        for user in list(node.users):
            _replace(lowering, user, x, lowering.call(operator.getitem, parts, user.args[1], like=user))


def _replace(lowering: Lowering, node: fx.Node, x: Real, q: fx.Node) -> None:
    lowering.rewriter.replace(node, lowering.call(_DSOPT.dequantize.default, q, x.scale, x.zero, like=node))


# ---- pooling and upsampling ----


def _each(value: Any, rank: int, default: int) -> list[int]:
    numbers = [default] if value is None else [value] if isinstance(value, int) else list(value)
    return numbers * rank if len(numbers) == 1 else numbers


def _max_pool(lowering: Lowering, node: fx.Node, x: Real) -> fx.Node:
    rank = _POOLS[node.target]
    given: tuple[Any, ...] = (*node.args[1:], *[None] * 5)
    kernel = _each(given[0], rank, 1)
    stride = _each(given[1], rank, 1) if given[1] else kernel
    window = (kernel, stride, _each(given[2], rank, 0), _each(given[3], rank, 1), bool(given[4]))
    return lowering.call(_DSOPT.q_max_pool.default, x.q, *window, like=node)


def _adaptive_pool(lowering: Lowering, node: fx.Node, x: Real) -> None:
    """Only windows of one size: the others stay float, between a dequantize and a quantize."""
    rank = _ADAPTIVE[node.target]
    out = _each(node.args[1], rank, 1)
    sizes = node.args[0].meta["val"].shape[-rank:]  # type: ignore[union-attr]
    values = [user for user in node.users if user.args[1] == 0]
    if len(values) < len(node.users) or any(
        not isinstance(size, int) or size % o for size, o in zip(sizes, out, strict=True)
    ):
        lowering.rewriter.skip(node, "its windows are not all of one size, or their places are asked for")
        return
    kernel = [size // o for size, o in zip(sizes, out, strict=True)]
    q = lowering.call(_DSOPT.q_max_pool.default, x.q, kernel, kernel, [0] * rank, [1] * rank, False, like=node)
    for user in values:
        _replace(lowering, user, x, q)


def _upsample(lowering: Lowering, node: fx.Node, x: Real) -> None:
    """Repeat rows and columns by index: result o takes input floor(o * input / output)."""
    before, after = node.args[0].meta["val"].shape, node.meta["val"].shape  # type: ignore[union-attr]
    q = x.q
    for dim in range(2, len(after)):
        if not isinstance(before[dim], int) or not isinstance(after[dim], int):
            lowering.rewriter.skip(node, "the sizes that it interpolates between vary")
            return
    for dim in range(2, len(after)):
        if after[dim] == before[dim]:
            continue
        if after[dim] % before[dim] == 0:
            q = lowering.call(_ATEN.repeat_interleave.self_int, q, after[dim] // before[dim], dim, like=node)
        else:
            places = torch.arange(after[dim]) * before[dim] // after[dim]
            index = lowering.constant(f"{lowering.program.layer(node) or node.name}.rows_{dim}", places.numpy())
            q = lowering.call(_ATEN.index_select.default, q, dim, index, like=node)
    _replace(lowering, node, x, q)
