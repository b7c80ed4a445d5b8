"""Modules of a model by pattern, as options of passes name them: "head|features.*.conv"."""

from __future__ import annotations

from fnmatch import fnmatchcase


def split_patterns(text: str) -> list[str]:
    """Return the patterns that an option lists."""
    return [part.strip() for part in text.split("|") if part.strip()]


def is_inside(path: str, pattern: str) -> bool:
    """Tell whether a path in the model, or that of a module around it, matches a pattern."""
    parts = path.split(".")
    return any(fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))
