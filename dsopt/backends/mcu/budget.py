"""What a program needs against what its target has: met, or refused with what is missing, where it goes, and what would help.

RAM is arena, states, other variables and, where the core is emulated, the deepest stack; flash is code and weights of the linked image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dsopt.backends.mcu.measure import Measurement
from dsopt.backends.mcu.place import Placement
from dsopt.backends.tir.program import Buffer
from dsopt.errors import BudgetError, ToolchainError
from dsopt.target import CORES, McuTarget, known_boards
from dsopt.target.byte_counts import format_bytes

Rows = Sequence[Mapping[str, Any]]

RAM_EXCEEDED = "DS0601"
_SHOWN = 5
_QUANTISE = 'store values and weights in 8 bits, a quarter: --passes "...,quantize" --data SAMPLES.npz'
_FOUR_BITS = 'store weights in 4 bits, half: --passes "...,quantize{weights=4}", or train so with dsopt.train.qat'


@dataclass(frozen=True)
class _Overrun:
    """One budget that is exceeded: its code, in a sentence, where it goes, and what would help."""

    code: str
    what: str
    where: str
    helps: tuple[str, ...]


def check_plan(placement: Placement, target: McuTarget, rows: Rows) -> None:
    """Raise BudgetError before any C is written if arena and states, or the weights alone, are more than the target has."""
    need = placement.plan.arena_bytes + placement.state_bytes
    parts = f"arena {placement.plan.arena_bytes:,}, states {placement.state_bytes:,}, without stack and other variables"
    found = [_ram(placement, target, rows, need, parts)] if need > target.ram_bytes else []
    if placement.weight_bytes > target.flash_bytes:
        found.append(_flash(placement, target, rows, placement.weight_bytes, "weights"))
    _refuse(found)


def check_measured(placement: Placement, target: McuTarget, rows: Rows, measured: Measurement) -> None:
    """Raise BudgetError with every budget that the image exceeds, ToolchainError if instructions are limited and cannot be counted."""
    found = []
    if measured.ram_bytes > target.ram_bytes:
        found.append(_ram(placement, target, rows, measured.ram_bytes, _parts(placement, measured)))
    if measured.flash_bytes > target.flash_bytes:
        found.append(_flash(placement, target, rows, measured.flash_bytes, "code and weights"))
    limit, taken = target.instructions, measured.instructions
    if limit is not None and taken is not None and taken > limit:
        found.append(_instructions(target, rows, taken))
    _refuse(found)
    if limit is not None and taken is None:
        raise ToolchainError(
            "DS0604", f"instructions are limited to {limit:,}, and none were counted", why=measured.why_not_run,
            fix="leave that limit out, or compile for a core that can be emulated here",
        )  # fmt: skip


def limits(target: McuTarget) -> dict[str, int]:
    """Return what was allowed, for the manifest."""
    found = {"ram_bytes": target.ram_bytes, "flash_bytes": target.flash_bytes}
    return found if target.instructions is None else {**found, "instructions": target.instructions}


def _refuse(found: Sequence[_Overrun]) -> None:
    if not found:
        return
    helps = list(dict.fromkeys(each for overrun in found for each in overrun.helps))
    raise BudgetError(
        found[0].code, "; ".join(overrun.what for overrun in found), where="\n".join(overrun.where for overrun in found),
        fix="\n".join(helps),
    )  # fmt: skip


def _over(need: int, limit: int) -> str:
    return f"{need - limit:,} too many"


def _parts(placement: Placement, measured: Measurement) -> str:
    other = measured.static_bytes - placement.plan.arena_bytes - placement.state_bytes
    stack = "not measured" if measured.stack_bytes is None else f"{measured.stack_bytes:,}"
    return f"arena {placement.plan.arena_bytes:,}, states {placement.state_bytes:,}, other variables {other:,}, stack {stack}"


def _ram(placement: Placement, target: McuTarget, rows: Rows, need: int, parts: str) -> _Overrun:
    room = target.ram_bytes - (need - placement.plan.arena_bytes)
    crowded = sorted((row for row in rows if row["live_bytes"] > room), key=lambda row: -row["live_bytes"])
    worst = crowded or sorted(rows, key=lambda row: -row["live_bytes"])[:1]
    where = f"RAM: {parts}\nvalues while a layer runs, of {max(room, 0):,} bytes that the arena may have:\n"
    where += _listed([f"{row['live_bytes']:,} in {_name(row)}" for row in worst])
    if worst:
        where += f"\nthe largest values in {_name(worst[0])}:\n" + _largest(_alive(placement, rows.index(worst[0])))
    ports = [placement.program.buffers[name] for name in (*placement.program.inputs, *placement.program.outputs)]
    is_quantised = any("quantize" in row["op"] for row in rows)
    helps = [_QUANTISE] if any(row["is_float"] for row in rows) else []
    if is_quantised and any(port.dtype == "float32" for port in ports):
        helps.append("take and give 8-bit integers instead of floats: --io int8")
    helps.append("a smaller input, a larger stride or fewer channels in the layers above")
    return _Overrun(
        RAM_EXCEEDED,
        f"the model needs {need:,} bytes of RAM, and {target.name} here has {target.ram_bytes:,}: {_over(need, target.ram_bytes)}",
        where,
        (*helps, _more("ram", need, target)),
    )


def _flash(placement: Placement, target: McuTarget, rows: Rows, need: int, what: str) -> _Overrun:
    by_size = sorted(rows, key=lambda row: -_flash_of(row))
    heavy = [f"{_flash_of(row):,} in {_name(row)}" for row in by_size if _flash_of(row)]
    weights = [b for b in placement.program.buffers.values() if b.kind == "weight" and b.alias_of is None]
    where = f"flash by layer, weights and code:\n{_listed(heavy)}\nthe largest weights:\n{_largest(weights)}"
    helps = [_QUANTISE] if any(row["is_float"] for row in rows) else [_FOUR_BITS]
    helps.append("fewer channels in the layers above, or pooling before a linear layer")
    return _Overrun(
        "DS0602",
        f"{what} need {need:,} bytes of flash, and {target.name} here has {target.flash_bytes:,}: {_over(need, target.flash_bytes)}",
        where,
        (*helps, _more("flash", need, target)),
    )


def _instructions(target: McuTarget, rows: Rows, need: int) -> _Overrun:
    limit = target.instructions or 0
    by_count = sorted(rows, key=lambda row: -(row.get("instructions") or 0))
    listed = [
        f"{row['instructions']:,} ({row['instructions'] / need:.0%}) in {_name(row)}{_why(row)}"
        for row in by_count
        if row.get("instructions")
    ]
    helps = []
    if any(row["is_float"] for row in rows):
        helps.append(_QUANTISE.replace("store values and weights in 8 bits, a quarter", "compute in 8-bit integers"))
    if any(row["why_generic"] for row in rows):
        helps.append("give layers with generic loops a form that has a kernel; --strict lists all of them")
    if CORES[target.core].family == "arm" and not CORES[target.core].has_dsp:
        helps.append("choose a core with the DSP extension, a Cortex-M4 or better")
    return _Overrun(
        "DS0603",
        f"a run takes {need:,} instructions, and {limit:,} are allowed: {_over(need, limit)}",
        "instructions by layer:\n" + _listed(listed or ["not counted by layer: the simulator counts whole runs"]),
        (*helps, "a smaller input, a larger stride or fewer channels in the layers above"),
    )


def _more(what: str, need: int, target: McuTarget) -> str:
    """Say which boards of the same core would do."""
    fitting = [
        board.name
        for board in known_boards().values()
        if board.core == target.core
        and board != target.board
        and (board.ram_bytes if what == "ram" else board.flash_bytes) >= need
    ]
    boards = f", such as {' or '.join(fitting[:3])}" if fitting else ""
    rounded = format_bytes(-(-need // 1024) * 1024)
    return f"a chip with more{boards}: --{what} {rounded}, McuTarget({what}_bytes={need})"


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['layer']} ({row['function']})" if row["layer"] else str(row["function"])


def _why(row: Mapping[str, Any]) -> str:
    return f": {row['kernel']}, because {row['why_generic']}" if row["why_generic"] else ""


def _flash_of(row: Mapping[str, Any]) -> int:
    return int(row["weight_bytes"]) + int(row.get("code_bytes") or 0)


def _alive(placement: Placement, step: int) -> list[Buffer]:
    alive = [life.name for life in placement.lives.values() if life.first <= step <= life.last]
    return [placement.program.buffers[name] for name in (*alive, *placement.states)]


def _largest(buffers: Sequence[Buffer]) -> str:
    by_size = sorted(buffers, key=lambda buffer: (-buffer.size_bytes, buffer.name))
    return _listed([f"{each.name}: {each.size_bytes:,} bytes, {each.dtype} {list(each.shape)}" for each in by_size])


def _listed(lines: Sequence[str]) -> str:
    more = len(lines) - _SHOWN
    return "\n".join([*lines[:_SHOWN], *([f"and {more} more"] if more > 0 else [])])
