"""Varying sizes: symbols of torch's shape environment on one side, expressions over the user's dim names on the other."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

Size = int | str
"""A fixed size, or an expression over dim names such as "batch" or "2*batch"."""


def size_text(size: int | torch.SymInt, names: Mapping[str, str]) -> Size:
    """Return an int, or the expression of a SymInt with each symbol under its dim name (itself if it has none)."""
    if isinstance(size, int):
        return size
    text = str(size)
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    return re.sub(r"[A-Za-z_]\w*", lambda match: names.get(match[0], match[0]), text).replace(" ", "")


def shape_text(shape: torch.Size | tuple[int | torch.SymInt, ...], names: Mapping[str, str]) -> tuple[Size, ...]:
    """Return a shape with every size as `size_text` gives it."""
    return tuple(size_text(size, names) for size in shape)
