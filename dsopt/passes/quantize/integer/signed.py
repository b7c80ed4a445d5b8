"""Write unsigned integers, which other tools use for activations, as signed ones: q of 0..255 with zero point z -> q - 128 with z - 128."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from dsopt.ir import Program, Rewriter

_DSOPT = torch.ops.dsopt
_SHIFT = 128


def make_signed(program: Program, rewriter: Rewriter) -> None:
    """Rewrite every uint8 that is only quantized or stored and dequantized again."""
    for node in list(program.graph.nodes):
        if not node.users:  # the dequantize of a rounding that was rewritten
            continue
        if node.target is _DSOPT.quantize.default and program.dtype(node) == torch.uint8:
            _shift_rounding(rewriter, node)
        elif node.target in (_DSOPT.dequantize.default, _DSOPT.dequantize_channel.default):
            _shift_stored(program, rewriter, node)


def _shift_rounding(rewriter: Rewriter, node: fx.Node) -> None:
    users = list(node.users)
    if not users or any(user.target is not _DSOPT.dequantize.default for user in users):
        return
    arguments: tuple[Any, ...] = node.args
    x, scale, zero, low, high = arguments
    q = rewriter.call(_DSOPT.quantize.default, x, scale, zero - _SHIFT, low - _SHIFT, high - _SHIFT, like=node)
    for user in users:
        grid: tuple[Any, ...] = user.args[1:]
        made = rewriter.call(_DSOPT.dequantize.default, q, grid[0], grid[1] - _SHIFT, like=user)
        rewriter.replace(user, made)


def _shift_stored(program: Program, rewriter: Rewriter, node: fx.Node) -> None:
    source: Any = node.args[0]
    values, name = program.weight(source), program.weight_name(source)
    if values is None or values.dtype != torch.uint8:
        return
    arguments: tuple[Any, ...] = node.args[1:]
    shifted = (values.to(torch.int16) - _SHIFT).to(torch.int8)
    stored = rewriter.add_weight(f"{name}.int8", shifted, "constant")
    if node.target is _DSOPT.dequantize.default:
        made = rewriter.call(node.target, stored, arguments[0], arguments[1] - _SHIFT, like=node)
        rewriter.replace(node, made)
        return
    scale, zero_node, *options = arguments
    zero = torch.zeros((), dtype=torch.int32) if zero_node is None else program.weight(zero_node)
    if zero is None:
        return
    moved = rewriter.add_weight(
        f"{name}.zero_point",
        zero.to(torch.int32).expand_as(program.weights[program.weight_name(scale) or ""]) - _SHIFT,
        "constant",
    )
    rewriter.replace(node, rewriter.call(_DSOPT.dequantize_channel.default, stored, scale, moved, *options, like=node))
