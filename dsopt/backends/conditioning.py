"""How far a model is from itself in higher precision: rounding alone may move the outputs of a deep network with random weights.

Layers that magnify differences make of the last bit of float32 whole percents. Emitted code that adds in another order then differs from
torch by as much as torch differs from the exact result, and neither is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dsopt.ir import Program
from dsopt.ir.interpret import evaluate

FACTOR = 4.0
"""Emitted code may differ from torch by so many times what torch's float32 differs from float64: it has an error of its own."""

MOST = 0.5
"""An error above which outputs say nothing, so that nothing is excused."""

_ROUNDING = ("dsopt.quantize", "dsopt.dequantize", "dsopt.fake_quantize", "dsopt.dynamic_linear", "dsopt.q_", "aten.round", "aten.floor",
             "aten.ceil", "aten.trunc")  # fmt: skip


def own_errors(program: Program, inputs: tuple[Tensor, ...]) -> dict[str, float]:
    """Return max|a-b| / max|b| of each float32 output, a computed in float32 and b in float64, from the first states.

    {} for programs that round to integers, or have an operator that takes no mixture of precisions. Casts and constants in float32 that
    the graph contains stay, so that this may be less than the whole error, and never more.
    """
    if any(str(node.target).startswith(_ROUNDING) for node in program.graph.nodes):
        return {}  # a value on the other side of a tie would look like an error
    bound = program.bind(inputs)
    wide = {node: value.double() if value.dtype == torch.float32 else value for node, value in bound.items()}
    try:
        with torch.no_grad():
            exact = evaluate(program.graph, wide)[len(program.states) :]
    except (RuntimeError, TypeError, ValueError):  # an operator that takes no mixture of precisions
        return {}
    found = {}
    for spec, a, b in zip(program.signature.outputs, program.run(*inputs), exact, strict=True):
        if a.dtype == torch.float32 and b.dtype == torch.float64 and a.numel() and bool(b.isfinite().all()):
            found[spec.name] = float((a.double() - b).abs().max() / b.abs().max().clamp_min(1e-300))
    return found


def excused(
    errors: dict[str, float], program: Program, runs: Sequence[tuple[Tensor, ...]], tolerance: float
) -> dict[str, float]:
    """Return the outputs among `errors` whose error rounding alone explains, with torch's own."""
    too_large = {name: error for name, error in errors.items() if not error <= tolerance}
    own: dict[str, float] = {}
    for inputs in runs if too_large else ():
        for name, error in own_errors(program, inputs).items():
            own[name] = max(own.get(name, 0.0), error)
    return {
        name: own[name] for name, error in too_large.items() if name in own and error <= min(FACTOR * own[name], MOST)
    }
