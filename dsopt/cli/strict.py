"""dsopt compile --strict: no layer may fall back to generic loops or to floating point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dsopt.errors import CheckError, UsageError

if TYPE_CHECKING:
    from dsopt.api import Build
    from dsopt.target import Target


def refuse_strict(target: Target) -> None:
    """Raise UsageError for a target whose artifacts do not say how layers are written, so that nothing could be refused."""
    if target.kind != "mcu":
        raise UsageError(
            "DS0308", f"--strict judges the layers of a microcontroller, and the target is {target.name}",
            fix="leave it out, or compile for mcu:...; --fail-on skip fails if a pass left something alone",
        )  # fmt: skip


def refuse_fallbacks(build: Build) -> None:
    """Raise CheckError with all layers of a microcontroller artifact that fell back, and why."""
    rows = build.artifact.manifest.get("layers", ())
    reasons = [skip for record in build.records if record.name.startswith("quantize") for skip in record.skips]
    generic = [f"{_name(row)}: generic loops, because {row['why_generic']}" for row in rows if row.get("why_generic")]
    floats = [f"{_name(row)}: floating point{_reason(row, reasons)}" for row in rows if row.get("is_float")]
    elsewhere = [f"{_name(row)}: {row['fallback']}" for row in rows if row.get("fallback")]
    found = list(dict.fromkeys([*generic, *floats, *elsewhere]))
    if not found:
        return
    helps = ["give these layers a form that has a kernel, as the reason says"] if generic else []
    if floats and any(record.name.startswith("quantize") for record in build.records):
        helps.append(
            "write what stays in floats with operators that have an integer form, such as nn.GRU for nn.GRUCell"
        )
    elif floats:
        helps.append('quantise, as in --passes "...,quantize" --data SAMPLES.npz')
    count = "1 layer is" if len(found) == 1 else f"{len(found)} layers are"
    raise CheckError(
        "DS0923", f"{count} not what --strict asks for: {len(generic)} in generic loops, {len(floats)} in floating point",
        where="\n".join(found), fix="\n".join([*helps, "or drop --strict; nothing was written"]),
    )  # fmt: skip


def _name(row: Mapping[str, Any]) -> str:
    layer, what = str(row.get("layer") or ""), str(row.get("op") or row.get("node"))
    at = f" at {row['source']}" if row.get("source") else ""
    return (
        f"{layer} ({row.get('function', what)}, {what}){at}" if layer else f"{row.get('function', what)} ({what}){at}"
    )


def _reason(row: Mapping[str, Any], reasons: Sequence[str]) -> str:
    """Return what a quantising pass said of the node, if it said something."""
    known = [skip for skip in reasons if skip.startswith(f"%{row['node']} ")]
    return f", because {known[0].rpartition(': ')[2]}" if known else ""
