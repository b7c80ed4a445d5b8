"""What each layer function of a placed program is, and needs: the rows of manifest["layers"]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dsopt.backends.mcu.c_text import Names
from dsopt.backends.mcu.harness import location
from dsopt.backends.mcu.place import Placement
from dsopt.backends.tir.program import Kernel
from dsopt.ir import Program

_READ_OFF = "dsopt.dequantize.default"
_BORDERS = ("dsopt.quantize.default", _READ_OFF)
"""Operators that read or write floats because that is what they are for."""


def layer_rows(program: Program, placement: Placement) -> list[dict[str, Any]]:
    """Return a row for each layer function, in the order in which they run. A node may become several functions.

    kernel: how it is written, and why_generic, if it fell back to plain loops, why.  is_float: it computes in floating point.
    live_bytes: of the arena that hold values while it runs; what lies over an operand counts once.
    """
    operators = {node.name: str(node.target) for node in program.graph.nodes}
    rows: list[dict[str, Any]] = []
    for number, kernel in enumerate(placement.program.kernels):
        op = operators.get(kernel.node, "")
        row: dict[str, Any] = {
            "node": kernel.node,
            "function": kernel.name,
            "layer": kernel.layer,
            "op": op,
            "source": kernel.source,
            "shape": list(placement.program.buffers[kernel.outputs[0]].shape),
            "multiply_adds": kernel.multiply_adds,
            "weight_bytes": _weight_bytes(placement, kernel),
            "kernel": kernel_text(kernel),
            "why_generic": kernel.why,
            "is_float": op not in _BORDERS and _is_float(placement, kernel),
            "live_bytes": _live_bytes(placement, number),
        }
        rows.append(row)
    return rows


def kernel_text(kernel: Kernel) -> str:
    """Return how a kernel is written, in words."""
    return (
        f"{kernel.choice}; loops around it for {'size' if kernel.is_glue else 'speed'}"
        if kernel.choice
        else "generic loops"
    )


def add_traces(rows: Sequence[dict[str, Any]], placement: Placement, names: Names) -> None:
    """Add "trace" to the last row of each node: where its result lies when the function returns."""
    kernels = placement.program.kernels
    last = {kernel.node: number for number, kernel in enumerate(kernels)}
    for number, (row, kernel) in enumerate(zip(rows, kernels, strict=True)):
        result = placement.program.results.get(kernel.node)
        if last[kernel.node] == number and result is not None:
            row["trace"] = _trace(placement, names, result)
            grid = placement.program.grids.get(result)
            if (
                row["op"] == _READ_OFF and grid is not None
            ):  # an output that stays integers, put into the order of its shape
                row["trace"] |= {"stored": {"dtype": row["trace"]["dtype"], **asdict(grid)}, "dtype": "float32"}


def _trace(placement: Placement, names: Names, name: str) -> dict[str, Any]:
    buffer = placement.program.buffers[name]
    symbol, offset = location(names, placement, name)
    trace = {"symbol": symbol, "offset": offset, "shape": list(buffer.shape), "dtype": buffer.dtype}
    return {**trace, "channels_last": True} if buffer.channels_last else trace


def _live_bytes(placement: Placement, step: int) -> int:
    lives = [life for life in placement.lives.values() if life.first <= step <= life.last]
    spans = sorted((placement.plan.offsets[life.name], life.size_bytes) for life in lives)
    live = top = 0
    for start, size in spans:
        live += max(start + size - max(start, top), 0)
        top = max(top, start + size)
    return live


def _weight_bytes(placement: Placement, kernel: Kernel) -> int:
    roots = {placement.program.root(name).name: placement.program.root(name) for name in kernel.inputs}
    return sum(root.size_bytes for root in roots.values() if root.kind == "weight")


def _is_float(placement: Placement, kernel: Kernel) -> bool:
    buffers = placement.program.buffers
    return any(buffers[name].dtype.startswith("float") for name in kernel.arguments)
