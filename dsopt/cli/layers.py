"""The layers of an artifact as rows of a table: those of patches summed, since each patch has functions of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class LayerRow:
    """One layer, or what several patches of it take together. count: how many functions that are; kernels: how they are written."""

    layer: str
    op: str
    shape: Any
    kernels: list[str] = field(default_factory=list)
    multiply_adds: int | None = None
    instructions: int | None = None
    count: int = 0

    @property
    def kernel(self) -> str:
        """Return the kernels by their families: "matrix" of "matrix: 4 pixels x 2 channels"."""
        return ", ".join(self.kernels)


def layer_rows(manifest: Mapping[str, Any], instructions: Sequence[int | None] | None = None) -> list[LayerRow]:
    """Return the rows of manifest["layers"]; where first layers run in patches, one for each layer and operator.

    instructions: of one run, for each entry with a function, in their place.
    """
    is_patched = bool(manifest.get("patches"))
    counted = iter(instructions or ())
    found: dict[Any, LayerRow] = {}
    for number, entry in enumerate(manifest.get("layers", ())):
        layer, op, shape = (
            str(entry.get("layer") or entry.get("node", "")),
            str(entry.get("op", "")),
            entry.get("shape"),
        )
        taken = entry.get("instructions")
        if instructions is not None:
            taken = next(counted, None) if isinstance(entry.get("function"), str) else None
        row = found.setdefault((layer, op) if is_patched else number, LayerRow(layer, op, shape))
        family = str(entry.get("kernel", "")).partition(":")[0]
        if family and family not in row.kernels:
            row.kernels.append(family)
        if _elements(shape) > _elements(row.shape):
            row.shape = shape
        row.multiply_adds = _sum(row.multiply_adds, entry.get("multiply_adds"))
        row.instructions = _sum(row.instructions, taken)
        row.count += 1
    return list(found.values())


def patches_text(manifest: Mapping[str, Any]) -> str:
    """Say which layers run patch by patch or strip by strip, or why none do although that was asked for; "" where it was not."""
    patches = manifest.get("patches")
    if not isinstance(patches, Mapping):
        why = manifest.get("why_whole")
        return f"none, because {why}" if isinstance(why, str) else ""
    until = patches.get("layer") or f"%{patches.get('until')}"
    parts = f"{patches.get('rows')} x {patches.get('columns')}"
    if patches.get("is_cascade") is True:
        parts = f"{patches.get('rows')} strips, each row once,"
        if patches.get("columns") != 1:
            parts = f"{patches.get('columns')} columns of {patches.get('rows')} strips"
    text = f"{parts} of {until} and all before it"
    products = patches.get("multiply_adds")
    return f"{text}, {products:,} multiply-adds" if isinstance(products, int) else text


def port_text(entry: Mapping[str, Any]) -> str:
    """Return "float32[1, 3, 8, 8]", or what stands in memory where that are integers."""
    sizes = ", ".join(str(size) for size in entry["shape"])
    stored = entry.get("stored")
    if not isinstance(stored, Mapping):
        return f"{entry['dtype']}[{sizes}]"
    scale = stored.get("scale")
    step = f"{scale:.9g}" if isinstance(scale, float) else scale
    return f"{stored.get('dtype')}[{sizes}], scale {step}, zero point {stored.get('zero_point')}"


def _sum(one: int | None, other: Any) -> int | None:
    return one if not isinstance(other, int) else other + (one or 0)


def _elements(shape: Any) -> int:
    whole = isinstance(shape, (list, tuple)) and all(isinstance(size, int) for size in shape)
    return math.prod(shape) if whole else -1
