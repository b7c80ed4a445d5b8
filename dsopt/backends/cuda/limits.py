"""What a generated kernel cannot hold: its indices are 32-bit."""

from __future__ import annotations

import math

import torch

from dsopt.backends.base import Blocker
from dsopt.ir import Program

MOST_ELEMENTS = 2**31 - 1


def size_blockers(program: Program) -> tuple[Blocker, ...]:
    """Return the nodes of a program with fixed sizes whose tensors have too many elements to index."""
    found = []
    for node in program.graph.nodes:
        value = node.meta.get("val")
        tensors = value if isinstance(value, (tuple, list)) else [value]
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor) and math.prod(tensor.shape) > MOST_ELEMENTS:
                why = f"its {math.prod(tensor.shape):,} elements are more than 32-bit indices reach"
                found.append(Blocker.of(program, node, why, "split the batch or the layer"))
    return tuple(found)
