"""What keeps a program from becoming kernels: operators without a loop form, sizes that vary, tensors too large to index."""

from __future__ import annotations

import math

import torch

from dsopt.backends.base import Blocker
from dsopt.backends.tir.lower import blockers
from dsopt.ir import Program

MOST_ELEMENTS = 2**31 - 1
"""Of one tensor: kernels index with 32 bits."""


def all_blockers(program: Program) -> tuple[Blocker, ...]:
    """Return all blockers at once. Where sizes vary, the operators are asked about as they are with the smallest sizes."""
    varying = _varying_inputs(program)
    fixed = program.specialize({name: max(dim.min, 1) for name, dim in program.dims.items()}) if varying else program
    return (*varying, *(_too_large(fixed) or blockers(fixed)))


def _varying_inputs(program: Program) -> tuple[Blocker, ...]:
    """Return a blocker for each input whose shape varies, rather than for every node that follows from it."""
    fix = "fix it with " + " ".join(f"--dim {name}={max(dim.min, 1)}" for name, dim in sorted(program.dims.items()))
    return tuple(
        Blocker.of(program, node, f"its shape {list(program.shape(node))} varies, and kernels have fixed sizes", fix)
        for node in program.inputs
        if any(isinstance(size, str) for size in program.shape(node))
    )


def _too_large(program: Program) -> tuple[Blocker, ...]:
    found = []
    for node in program.graph.nodes:
        value = node.meta.get("val")
        for tensor in value if isinstance(value, (tuple, list)) else [value]:
            if isinstance(tensor, torch.Tensor) and math.prod(tensor.shape) > MOST_ELEMENTS:
                why = f"its {math.prod(tensor.shape):,} elements are more than 32-bit indices reach"
                found.append(Blocker.of(program, node, why, "split the batch or the layer"))
    return tuple(found)
