"""The passes that make a program ready for a GPU, in order."""

from __future__ import annotations

from dsopt.passes.base import Pass, load_pass

PASSES = ("canonicalize", "fold-batch-norm", "fuse-activation", "fuse-attention", "fold-constants", "remove-dead-code")
"""Batch norms go into convolutions before activations do, which then follow directly; attention is fused before constants are
folded, which would hide its scale."""


def cuda_pipeline() -> tuple[Pass, ...]:
    """Return the passes with their default options."""
    return tuple(load_pass(name)() for name in PASSES)
