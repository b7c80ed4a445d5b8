"""Captures randomized networks, prunes them, and has them judged by `benchmarks.prune.masked`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from benchmarks.prune import masked
from dsopt.frontend.export import export_module
from dsopt.ir import Program, example_inputs
from dsopt.passes.base import PassManager, PassRecord, parse_pipeline


def program_of(model: nn.Module, *args: Tensor, dynamic: Any = None, seed: int = 0) -> Program:
    """Capture a randomized module in float64."""
    doubles = tuple(arg.double() if arg.is_floating_point() else arg for arg in args)
    return export_module(masked.randomized(model, seed), doubles, {}, dynamic)


def pruned(program: Program, pipeline: str) -> tuple[Program, PassRecord]:
    """Return the program after a pass, verified, and what the pass recorded."""
    result, records = PassManager(parse_pipeline(pipeline)).run(program)
    return result, records[0]


def masked_difference(program: Program, result: Program, inputs: tuple[Tensor, ...] | None = None) -> float:
    """Return the difference of a pruned program from the masked original on seeded inputs, or on those given."""
    return masked.masked_difference(program, result, example_inputs(program, seed=1) if inputs is None else inputs)
