"""Layers by pattern, as in keep="head|features.*.conv"."""

from __future__ import annotations

import numpy as np

from dsopt.errors import UsageError
from dsopt.ir.layer_names import is_inside, split_patterns
from dsopt.passes.prune.channels import Channels, Keep


def channels_of_layers(channels: Channels, patterns: str) -> Keep:
    """Tell of each channel whether a weight of one of these layers has it. Raises UsageError for a pattern that names no layer."""
    found = np.zeros(channels.count, np.bool_)
    names = [spec.name for spec in channels.inference.program.signature.weights]
    for pattern in split_patterns(patterns):
        chosen = {name for name in names if is_inside(name, pattern)}
        if not chosen:
            layers = sorted({name.rpartition(".")[0] for name in names} - {""})
            raise UsageError(
                "DS0372", f"keep={pattern!r} names no layer with weights", fix="its layers: " + ", ".join(layers)
            )  # fmt: skip
        for use in channels.uses:
            if use.weight in chosen:
                found[channels.in_row(use.row)] = True
    return found
