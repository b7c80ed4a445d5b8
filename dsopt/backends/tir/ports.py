"""Inputs and outputs of a quantised program that code can take and give as integers, because nothing but rounding is between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from dsopt.backends.tir.program import Grid
from dsopt.errors import UsageError
from dsopt.ir import Program

_QUANTIZE, _DEQUANTIZE = torch.ops.dsopt.quantize.default, torch.ops.dsopt.dequantize.default
_BOUNDS = {torch.int8: (-128, 127), torch.int16: (-32768, 32767), torch.uint8: (0, 255)}


def is_input(node: Any) -> bool:
    """Return whether an argument is an input, a weight or a state."""
    return isinstance(node, fx.Node) and node.op == "placeholder"


def rounds_input(node: fx.Node, ports: Mapping[fx.Node, Grid]) -> bool:
    """Return whether a node rounds an input that is a port of integers."""
    return bool(node.args) and is_input(node.args[0]) and node.args[0] in ports


def integer_inputs(program: Program) -> dict[fx.Node, Grid]:
    """Return the inputs that are read by nothing but roundings to one grid."""
    found = {}
    for node in program.inputs:
        grids: set[tuple[Any, ...] | None] = {
            tuple(user.args[1:]) if user.target is _QUANTIZE else None for user in node.users
        }
        if len(grids) == 1 and (grid := grids.pop()) is not None:
            scale, zero_point, low, high = grid
            found[node] = Grid(float(scale), int(zero_point), int(low), int(high))
    return found


def integer_outputs(program: Program) -> dict[fx.Node, Grid]:
    """Return the outputs that are real numbers read off a grid, and that nothing else reads."""
    found = {}
    for node in program.outputs:
        source: Any = node.args[0] if node.target is _DEQUANTIZE and len(node.users) == 1 else None
        if source is not None and not is_input(source):
            low, high = _BOUNDS[program.dtype(source)]
            found[node] = Grid(float(node.args[1]), int(node.args[2]), low, high)  # type: ignore[arg-type]
    return found


def refuse_float_ports(program: Program) -> None:
    """Raise UsageError if ports of integers would change nothing: there are real numbers at the borders, and all of them have to stay."""
    ports = [*program.inputs, *program.outputs]
    names = [spec.name for spec in (*program.signature.inputs, *program.signature.outputs)]
    floats = [name for name, node in zip(names, ports, strict=True) if program.dtype(node).is_floating_point]
    if not floats or integer_inputs(program) or integer_outputs(program):
        return
    if any(node.target in (_QUANTIZE, _DEQUANTIZE) for node in program.graph.nodes):
        raise UsageError(
            "DS0308", f"io 'int8' would change nothing: {', '.join(floats)} are computed with in floating point",
            why="an input becomes integers if all that reads it rounds it to one grid, an output if it is read off a grid",
            fix="quantise the first and the last layers, too (--strict lists what stays in floats), or leave --io out",
        )  # fmt: skip
    raise UsageError(
        "DS0308", "io 'int8' is for quantised models, and this one computes in floats",
        fix='quantise it with --passes "...,quantize" --data SAMPLES.npz (in Python passes="...,quantize", data=), or leave --io out',
    )  # fmt: skip
