"""Layers by pattern, as in keep="layers.0|decoder.*"."""

from __future__ import annotations

from collections.abc import Sequence

from dsopt.errors import UsageError
from dsopt.ir.layer_names import is_inside, split_patterns


def is_among(patterns: str, layer: str) -> bool:
    """Tell whether a module or one that contains it matches one of the patterns."""
    return any(is_inside(layer, pattern) for pattern in split_patterns(patterns))


def refuse_unknown(option: str, patterns: str, layers: Sequence[str]) -> None:
    """Raise UsageError if a pattern matches none of the modules with attention."""
    for pattern in split_patterns(patterns):
        if not any(is_inside(layer, pattern) for layer in layers):
            names = ", ".join(sorted(set(layers) - {""}))
            raise UsageError(
                "DS0395", f"{option}={pattern!r} names no layer with attention",
                fix=f"its layers with attention: {names}" if names else f"leave out {option}: no layer has attention",
            )  # fmt: skip
