"""What a manifest says of a program on a chip: its layers, its memory over time, and the budgets that it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dsopt.report.fields import count, flag, maybe_count, record, records, refuse, text

_BUDGETS = (("RAM", "ram_bytes"), ("flash", "flash_bytes"), ("instructions", "instructions"))


@dataclass(frozen=True)
class Candidate:
    """A way to write a layer that was measured. bytes: of its code and weights."""

    kernel: str
    instructions: int
    bytes: int
    chosen: bool


@dataclass(frozen=True)
class ChipLayer:
    """One function of the generated code. instructions, estimated_cycles, code_bytes: None where they are not known.

    candidates: the ways to write its layer, if there was a choice.
    """

    function: str
    layer: str
    kernel: str
    why_generic: str
    multiply_adds: int
    instructions: int | None
    estimated_cycles: int | None
    code_bytes: int | None
    weight_bytes: int
    live_bytes: int
    candidates: tuple[Candidate, ...] = ()


@dataclass(frozen=True)
class Buffer:
    """Bytes of the arena, and the first and last layer, by number, during which they hold a value."""

    name: str
    layer: str
    offset: int
    bytes: int
    first: int
    last: int


@dataclass(frozen=True)
class Budget:
    """What is needed, and what was allowed. unit: "bytes" or ""."""

    name: str
    unit: str
    need: int
    limit: int


@dataclass(frozen=True)
class Chip:
    """A program on a chip. arena_room: the bytes that the arena might have within the limit on RAM, None without one.

    patches: how the first layers run piece by piece, None where they run whole; then until which layer, in how many rows and columns.
    """

    layers: tuple[ChipLayer, ...]
    buffers: tuple[Buffer, ...]
    arena_bytes: int
    budgets: tuple[Budget, ...]
    arena_room: int | None
    patches: Patches | None


@dataclass(frozen=True)
class Patches:
    """Which layers run piece by piece: all up to `until`, in so many rows and columns of pieces.

    is_cascade: in strips that keep what the next one needs again, so that only borders of columns are computed twice.
    """

    until: str
    rows: int
    columns: int
    multiply_adds: int
    is_cascade: bool = False


def read_chip(manifest: Mapping[str, Any]) -> Chip | None:
    """Return what a manifest says; None if it is of no microcontroller. Raises ArtifactError for what is malformed."""
    if not str(manifest.get("target", "")).startswith("mcu:"):
        return None
    layers = tuple(
        ChipLayer(
            text(row, "function"), text(row, "layer"), text(row, "kernel"), text(row, "why_generic"),
            maybe_count(row, "multiply_adds") or 0, maybe_count(row, "instructions"), maybe_count(row, "estimated_cycles"),
            maybe_count(row, "code_bytes"), maybe_count(row, "weight_bytes") or 0, maybe_count(row, "live_bytes") or 0,
            tuple(map(_candidate, records(row, "candidates"))),
        )
        for row in records(manifest, "layers")
    )  # fmt: skip
    memory, limits = record(manifest, "memory"), record(manifest, "limits")
    arena_bytes = maybe_count(memory, "arena_bytes") or 0
    buffers = tuple(_buffer(entry, arena_bytes, len(layers)) for entry in records(memory, "buffers"))
    budgets = tuple(
        Budget(name, "bytes" if key.endswith("bytes") else "", count(memory, key), count(limits, key))
        for name, key in _BUDGETS
        if limits.get(key) is not None and memory.get(key) is not None
    )
    ram = next((each for each in budgets if each.name == "RAM"), None)
    room = None if ram is None else max(ram.limit - max(ram.need - arena_bytes, 0), 0)
    return Chip(layers, buffers, arena_bytes, budgets, room, _patches(manifest))


def _candidate(entry: Mapping[str, Any]) -> Candidate:
    return Candidate(text(entry, "kernel"), count(entry, "instructions"), count(entry, "bytes"), flag(entry, "chosen"))


def _buffer(entry: Mapping[str, Any], arena_bytes: int, layers: int) -> Buffer:
    found = Buffer(
        text(entry, "name"), text(entry, "layer"), count(entry, "offset"), count(entry, "bytes"),
        count(entry, "first"), count(entry, "last"),
    )  # fmt: skip
    if found.offset + found.bytes > arena_bytes:
        raise refuse("buffers", f"{found.name!r} leaves the arena")
    if not found.first <= found.last < max(layers, 1):
        raise refuse("buffers", f"{found.name!r} lives when no layer runs")
    return found


def _patches(manifest: Mapping[str, Any]) -> Patches | None:
    if manifest.get("patches") is None:
        return None
    entry = record(manifest, "patches")
    until = text(entry, "layer") or text(entry, "until")
    rows, columns, products = (count(entry, key) for key in ("rows", "columns", "multiply_adds"))
    return Patches(until, rows, columns, products, entry.get("is_cascade") is True)
