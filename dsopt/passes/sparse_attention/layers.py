"""Layers by pattern, as in keep="layers.0|decoder.*"."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from dsopt.errors import UsageError


def is_among(patterns: str, layer: str) -> bool:
    """Tell whether a module or one that contains it matches one of the patterns."""
    return any(_matches(pattern, layer) for pattern in _listed(patterns))


def refuse_unknown(option: str, patterns: str, layers: Sequence[str]) -> None:
    """Raise UsageError if a pattern matches none of the modules with attention."""
    for pattern in _listed(patterns):
        if not any(_matches(pattern, layer) for layer in layers):
            names = ", ".join(sorted(set(layers) - {""}))
            raise UsageError(
                "DS0395", f"{option}={pattern!r} names no layer with attention",
                fix=f"its layers with attention: {names}" if names else f"leave out {option}: no layer has attention",
            )  # fmt: skip


def _listed(patterns: str) -> list[str]:
    return [part.strip() for part in patterns.split("|") if part.strip()]


def _matches(pattern: str, layer: str) -> bool:
    parts = layer.split(".")
    return any(fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))
