"""The passes that make a program ready for ONNX Runtime, in order."""

from __future__ import annotations

from dsopt.passes.base import Pass, load_pass

PASSES = ("canonicalize", "fold-batch-norm", "fuse-attention", "fold-constants", "remove-dead-code")
"""Attention is fused before constants are folded, which would hide its scale; activations are left to ONNX Runtime, which
fuses them into convolutions itself and can then also lay out the data by blocks of channels."""


def cpu_pipeline() -> tuple[Pass, ...]:
    """Return the passes with their default options."""
    return tuple(load_pass(name)() for name in PASSES)
