"""Arguments and results of graph nodes as lowerings take them: names, dtypes, shapes without data."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from dsopt.backends.tir.program import ITEM_BYTES, Buffer
from dsopt.backends.tir.registry import LOWERINGS, RefusedError, identifier


def tir_dtype(dtype: torch.dtype) -> str:
    """Return the name of a dtype. Raises RefusedError if buffers cannot hold it."""
    name = str(dtype).removeprefix("torch.")
    if name not in ITEM_BYTES:
        raise RefusedError(f"tensors of {name} are not supported here", "convert the model with model.float()")
    return name


def free_name(taken: set[str], hint: str) -> str:
    """Return a C identifier like `hint` that is not taken, and take it."""
    base = name = identifier(hint)
    number = 2
    while name in taken:
        name, number = f"{base}_{number}", number + 1
    taken.add(name)
    return name


def on_meta(value: Any) -> Any:
    """Return an argument with tensors replaced by contiguous ones without data, and nodes of sizes by their values."""
    if isinstance(value, (list, tuple)):
        return [on_meta(each) for each in value]
    if not isinstance(value, fx.Node):
        return value
    known = value.meta["val"]
    return torch.empty(known.shape, dtype=known.dtype, device="meta") if isinstance(known, torch.Tensor) else known


def buffers_of(value: Any) -> list[Buffer]:
    """Return the buffers of a node's value, which may be a tuple of them."""
    if isinstance(value, (tuple, list)):
        return [each for each in value if isinstance(each, Buffer)]
    return [value] if isinstance(value, Buffer) else []


def nearest(name: str) -> str:
    """Name other overloads of an unknown operator that are supported, if any."""
    family = ".".join(name.split(".")[:2]) + "."
    known = sorted(other for other in LOWERINGS if other.startswith(family))
    return "supported forms: " + ", ".join(known) if known else "write it with other operators"
