"""Scales that no integer code can follow, looked for before anything is done to a program: other tools may have written them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from dsopt.errors import UsageError
from dsopt.ir import Program

_DSOPT = torch.ops.dsopt
_MOST_SHOWN = 20


def refuse_scales(program: Program) -> None:
    """Raise UsageError naming every rounding with a scale that is NaN or infinite, or by which nothing can be divided.

    What is still to be converted is left to `quantize-convert`, which knows how its scales were trained.
    """
    found = [(node, problem) for node in program.graph.nodes if (problem := _problem(program, node))]
    if not found:
        return
    shown = [f"{program.where(node)}: its scale is {problem}" for node, problem in found[:_MOST_SHOWN]]
    shown += [f"and {len(found) - _MOST_SHOWN} more"] if len(found) > _MOST_SHOWN else []
    raise UsageError(
        "DS0317", "a scale is no number above 0" if len(found) == 1 else f"{len(found)} scales are no numbers above 0",
        where="\n".join(shown), fix="quantise the model again: its values were NaN, infinite or all 0 when its scales were chosen",
    )  # fmt: skip


def _problem(program: Program, node: fx.Node) -> str:
    if node.op != "call_function":
        return ""
    scale: Any = node.args[1] if len(node.args) > 1 else None
    if node.target is _DSOPT.quantize.default:
        return "" if math.isfinite(scale) and scale > 0 else f"{scale:g}"
    if node.target is _DSOPT.dequantize.default:  # a scale of 0 is that of a weight of zeros
        return "" if math.isfinite(scale) and scale >= 0 else f"{scale:g}"
    if node.target is not _DSOPT.dequantize_channel.default or not isinstance(scale, fx.Node):
        return ""
    stored = program.weight(scale)
    if not isinstance(stored, Tensor) or bool((stored.isfinite() & (stored >= 0)).all()):
        return ""
    wrong = stored.reshape(-1)[~(stored.isfinite() & (stored >= 0)).reshape(-1)]
    return f"{float(wrong[0]):g} in {wrong.numel()} of {stored.numel()} channels"
