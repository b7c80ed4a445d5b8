"""The passes that a model goes through before it is lowered for a microcontroller, in order."""

from __future__ import annotations

from dsopt.passes.base import Pass, parse_pipeline

PIPELINE = (
    # one form for what can be written in several ways, and numbers in place of attention's default scale
    "canonicalize",
    # softmax(q k^T) v written by hand becomes one node before constants and activations are moved around it
    "fuse-attention",
    # batch norm first: it sits between a convolution and its activation
    "fold-batch-norm",
    "fuse-activation",
    # what depends on weights alone is computed here and stored in flash
    "fold-constants",
    "remove-dead-code",
)


def pipeline() -> tuple[Pass, ...]:
    """Return the passes of every microcontroller target."""
    return parse_pipeline(",".join(PIPELINE))
