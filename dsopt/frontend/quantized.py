"""Bring programs that other tools have quantised into the form of dsopt's own passes, so that lower-integer takes them.

quantized_decomposed.quantize_per_tensor(x, s, z, low, high, dtype)  ->  dsopt.quantize(x, s, z, low, high)
quantized_decomposed.dequantize_per_channel(q, s, z, axis, ...)      ->  dsopt.dequantize_channel(q, s, z, axis, ...)
dequantize(clamp(quantize(x, s, z, low, high), a, b))                ->  dequantize(quantize(x, s, z, max(low, a), min(high, b)))
dequantize(quantize(reshape(x)))                                     ->  reshape(dequantize(quantize(x)))

torch multiplies with the reciprocal of a scale where dsopt divides by it: a value on the border of two steps may get the other one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from dsopt.ir import Program, Rewriter
from dsopt.ops.quantized import storage_dtype

_ATEN = torch.ops.aten
_DSOPT = torch.ops.dsopt
_NAMESPACE = "quantized_decomposed"
_MOVES = frozenset(
    {
        _ATEN.reshape.default, _ATEN.view.default, _ATEN._unsafe_view.default, _ATEN.flatten.using_ints, _ATEN.unflatten.int,
        _ATEN.permute.default, _ATEN.transpose.int, _ATEN.t.default, _ATEN.squeeze.dim, _ATEN.squeeze.dims,
        _ATEN.unsqueeze.default,
    }
)  # fmt: skip
"""Operators that bring all elements of a tensor, and nothing else, into another shape or order."""


def adopt_quantisation(program: Program) -> None:
    """Rewrite a program that was just captured, where it is quantised; what has no form of dsopt stays as it is."""
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    if not any(target.startswith((_NAMESPACE, "dsopt.quantize")) for target in targets):
        return
    rewriter = Rewriter(program)
    for node in list(program.graph.nodes):
        if node.op == "call_function" and str(node.target).startswith(_NAMESPACE):
            _adopt(program, rewriter, node)
    for node in list(program.graph.nodes):
        if node.target is _DSOPT.quantize.default and node.users:
            _join_clamp(program, rewriter, node)
    for node in list(program.graph.nodes):
        if node.target is _DSOPT.quantize.default and node.users:
            _round_before_moves(rewriter, node)
    rewriter.erase_dead()


# ---- operators of torch's quantisers ----


def _adopt(program: Program, rewriter: Rewriter, node: fx.Node) -> None:
    made = _counterpart(program, rewriter, node)
    if made is not None:
        rewriter.replace(node, made)


def _counterpart(program: Program, rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    name = str(node.target).split(".")[1]
    args: Any = node.args
    if name.startswith("dequantize"):
        wanted = node.kwargs.get("out_dtype") or (args[-1] if "group" in name else None)
        if wanted not in (None, torch.float32) or node.meta["val"].dtype != torch.float32:
            return None
    if name == "quantize_per_tensor":
        grid, (low, high, dtype) = _numbers(program, args[1:3]), args[3:6]
        bounds = _numbers(program, (low, high))
        if grid is None or bounds is None or storage_dtype(int(bounds[0]), int(bounds[1])) != dtype:
            return None
        limits = int(bounds[0]), int(bounds[1])
        return rewriter.call(_DSOPT.quantize.default, args[0], grid[0], int(grid[1]), *limits, like=node)
    if name == "dequantize_per_tensor":
        grid = _numbers(program, args[1:3])
        if grid is None:
            return None
        return rewriter.call(_DSOPT.dequantize.default, args[0], grid[0], int(grid[1]), like=node)
    if name in ("quantize_per_channel", "quantize_per_channel_group"):
        return _stored_integers(program, rewriter, node)
    if name == "dequantize_per_channel":
        return _dequantized(program, rewriter, node, args[:3], args[3], 0, args[4:6])
    if name == "dequantize_per_channel_group" and args[0].meta["val"].dim() == 2:
        return _dequantized(program, rewriter, node, args[:3], 0, args[6], args[3:5])
    return None


def _numbers(program: Program, items: Any) -> list[float] | None:
    """Return arguments as numbers, stored tensors of one element too; None if one is computed."""
    found = []
    for item in items:
        value = program.weight(item) if isinstance(item, fx.Node) else item
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if not isinstance(value, (int, float)):
            return None
        found.append(value)
    return found


def _stored_integers(program: Program, rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Round a stored weight now; None for what is computed."""
    args: Any = node.args
    values = [program.weight(item) if isinstance(item, fx.Node) else item for item in args]
    if any(value is None and isinstance(item, fx.Node) for value, item in zip(values, args, strict=True)):
        return None
    with torch.no_grad():
        integers = node.target(*values)  # type: ignore[operator]
    return rewriter.add_weight(f"{program.weight_name(args[0])}.integers", integers, "constant")


def _dequantized(
    program: Program, rewriter: Rewriter, node: fx.Node, grid: Any, axis: int, group: int, bounds: tuple[int, int]
) -> fx.Node | None:
    q, scale_node, zero_node = grid
    scale, zero = program.weight(scale_node), program.weight(zero_node)
    if scale is None or (zero is None and zero_node is not None):
        return None
    name, shape = program.weight_name(scale_node), q.meta["val"].shape
    if group and (not isinstance(shape[1], int) or tuple(scale.shape) != (shape[0], -(-shape[1] // group))):
        return None
    if scale.dtype != torch.float32:
        scale_node = rewriter.add_weight(f"{name}.float32", scale.float(), "constant")
    zeros = None
    if zero is not None and bool(zero.any()):
        zeros = rewriter.add_weight(f"{program.weight_name(zero_node)}.int32", zero.to(torch.int32), "constant")
    bits = 4 if bounds[0] >= -8 and bounds[1] <= 7 else 8 * q.meta["val"].dtype.itemsize
    return rewriter.call(_DSOPT.dequantize_channel.default, q, scale_node, zeros, axis, group, bits, like=node)


# ---- where values are rounded ----


def _only_dequantized(node: fx.Node) -> bool:
    return all(user.target is _DSOPT.dequantize.default for user in node.users)


def _join_clamp(program: Program, rewriter: Rewriter, node: fx.Node) -> None:
    """Let a rounding that is clamped as integers round to the narrower range, as int8."""
    (clamp,) = node.users if len(node.users) == 1 else (None,)
    if clamp is None or clamp.target is not _ATEN.clamp.default or not clamp.users or not _only_dequantized(clamp):
        return
    limits: list[Any] = [*clamp.args[1:], None, None][:2]
    arguments: Any = node.args
    x, scale, zero, low, high = arguments
    if not all(limit is None or isinstance(limit, int) for limit in limits):
        return
    low, high = (
        (low if limits[0] is None else max(low, limits[0])),
        (high if limits[1] is None else min(high, limits[1])),
    )
    shift = 128 if program.dtype(node) == torch.uint8 else 0
    if low > high or storage_dtype(low - shift, high - shift) != storage_dtype(*_full(program, node)):
        return
    q = rewriter.call(_DSOPT.quantize.default, x, scale, zero - shift, low - shift, high - shift, like=node)
    for user in list(clamp.users):
        grid: tuple[Any, ...] = user.args[1:]
        made = rewriter.call(_DSOPT.dequantize.default, q, grid[0], grid[1] - shift, like=user)
        rewriter.replace(user, made)


def _full(program: Program, node: fx.Node) -> tuple[int, int]:
    """Return the range of the signed integers that are as wide as those of a node."""
    half = 1 << (8 * program.dtype(node).itemsize - 1)
    return -half, half - 1


def _round_before_moves(rewriter: Rewriter, node: fx.Node) -> None:
    """Round what a layer computes before it is moved, so that rounding and layer are seen to belong together."""
    moves: list[fx.Node] = []
    source: Any = node.args[0]
    while isinstance(source, fx.Node) and source.target in _MOVES and len(source.users) == 1:
        moves.append(source)
        source = source.args[0]
    is_result = isinstance(source, fx.Node) and source.op == "call_function" and len(source.users) == 1
    if not moves or not is_result or not _only_dequantized(node):
        return
    q = rewriter.call(_DSOPT.quantize.default, source, *node.args[1:], like=node)
    for user in list(node.users):
        real = rewriter.call(_DSOPT.dequantize.default, q, *user.args[1:], like=user)
        for move in reversed(moves):
            target: Any = move.target
            real = rewriter.call(target, real, *move.args[1:], like=user, **move.kwargs)
        rewriter.replace(user, real)
