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
class Overrun:
    """One budget that is exceeded: its code, in a sentence, where it goes, and what would help."""

    code: str
    what: str
    where: str
    helps: tuple[str, ...]


@dataclass(frozen=True)
class Lowest:
    """How little RAM patches take. text: a sentence about it, also where there are none; helps: what would show more.

    ram_bytes: of the best way, None without one; is_exact: with stack and other variables.
    """

    text: str = ""
    ram_bytes: int | None = None
    is_exact: bool = False
    helps: tuple[str, ...] = ()


def exceeded(
    target: McuTarget, placement: Placement, rows: Rows, measured: Measurement | None = None, lowest: Lowest | None = None
) -> list[Overrun]:  # fmt: skip
    """Return every budget that is exceeded: by the image, or, where none was built yet, by its values and weights alone."""
    found = []
    lowest = lowest or Lowest()
    ram = placement.plan.arena_bytes + placement.state_bytes if measured is None else measured.ram_bytes
    if ram > target.ram_bytes:
        found.append(_ram(placement, target, rows, ram, measured, lowest))
    flash = placement.weight_bytes if measured is None else measured.flash_bytes
    if flash > target.flash_bytes:
        found.append(_flash(placement, target, rows, flash, measured is not None))
    taken = None if measured is None else measured.instructions
    if target.instructions is not None and taken is not None and taken > target.instructions:
        found.append(_instructions(target, rows, taken))
    return found


def refusal(found: Sequence[Overrun], unknown: str = "") -> BudgetError:
    """Return the error that names every budget that is exceeded. unknown: what could not be found out, and why."""
    helps = list(dict.fromkeys(each for overrun in found for each in overrun.helps))
    where = [overrun.where for overrun in found]
    return BudgetError(
        found[0].code, "; ".join(overrun.what for overrun in found), where="\n".join([*where, *([unknown] if unknown else [])]),
        fix="\n".join(helps),
    )  # fmt: skip


def check_counted(target: McuTarget, measured: Measurement) -> None:
    """Raise ToolchainError if instructions are limited and were not counted."""
    if target.instructions is not None and measured.instructions is None:
        raise ToolchainError(
            "DS0604", f"instructions are limited to {target.instructions:,}, and none were counted", why=measured.why_not_run,
            fix="leave that limit out, or compile for a core that can be emulated here",
        )  # fmt: skip


def limits(target: McuTarget) -> dict[str, int]:
    """Return what was allowed, for the manifest."""
    found = {"ram_bytes": target.ram_bytes, "flash_bytes": target.flash_bytes}
    return found if target.instructions is None else {**found, "instructions": target.instructions}


def _over(need: int, limit: int) -> str:
    return f"{need - limit:,} too many"


def _parts(placement: Placement, measured: Measurement | None) -> str:
    text = f"arena {placement.plan.arena_bytes:,}, states {placement.state_bytes:,}"
    if measured is None:
        return f"{text}, without stack and other variables"
    other = measured.static_bytes - placement.plan.arena_bytes - placement.state_bytes
    stack = "not measured" if measured.stack_bytes is None else f"{measured.stack_bytes:,}"
    return f"{text}, other variables {other:,}, stack {stack}"


def _ram(
    placement: Placement, target: McuTarget, rows: Rows, need: int, measured: Measurement | None, lowest: Lowest
) -> Overrun:
    room = target.ram_bytes - (need - placement.plan.arena_bytes)
    crowded = sorted((row for row in rows if row["live_bytes"] > room), key=lambda row: -row["live_bytes"])
    worst = crowded or sorted(rows, key=lambda row: -row["live_bytes"])[:1]
    where = f"RAM: {_parts(placement, measured)}\nvalues while a layer runs, of {max(room, 0):,} bytes that the arena may have:\n"
    where += _listed([f"{row['live_bytes']:,} in {_name(row)}" for row in worst])
    if worst:
        where += f"\nthe largest values in {_name(worst[0])}:\n" + _alive(placement, rows.index(worst[0]))
    where += f"\n{lowest.text}" if lowest.text else ""
    ports = [placement.program.buffers[name] for name in (*placement.program.inputs, *placement.program.outputs)]
    is_quantised = any("quantize" in row["op"] for row in rows)
    helps = [_QUANTISE] if any(row["is_float"] for row in rows) else []
    if is_quantised and any(port.dtype == "float32" for port in ports):
        helps.append("take and give 8-bit integers instead of floats: --io int8")
    helps += [*lowest.helps, "a smaller input, a larger stride or fewer channels in the layers above"]
    least, is_exact = need, measured is not None
    if lowest.ram_bytes is not None and lowest.ram_bytes < need:
        least, is_exact = lowest.ram_bytes, lowest.is_exact
    return Overrun(
        RAM_EXCEEDED,
        f"the model needs {need:,} bytes of RAM, and {target.name} here has {target.ram_bytes:,}: {_over(need, target.ram_bytes)}",
        where,
        (*helps, _more("ram", least, target, "" if is_exact else "the stack and other variables")),
    )


def _flash(placement: Placement, target: McuTarget, rows: Rows, need: int, is_built: bool) -> Overrun:
    by_size = sorted(rows, key=lambda row: -_flash_of(row))
    heavy = [f"{_flash_of(row):,} in {_name(row)}" for row in by_size if _flash_of(row)]
    weights = [b for b in placement.program.buffers.values() if b.kind == "weight" and b.alias_of is None]
    where = f"flash by layer, weights{' and code' if is_built else ''}:\n{_listed(heavy)}\nthe largest weights:\n{_largest(weights)}"
    helps = [_QUANTISE] if any(row["is_float"] for row in rows) else [_FOUR_BITS]
    helps.append("fewer channels in the layers above, or pooling before a linear layer")
    what = "code and weights" if is_built else "weights"
    return Overrun(
        "DS0602",
        f"{what} need {need:,} bytes of flash, and {target.name} here has {target.flash_bytes:,}: {_over(need, target.flash_bytes)}",
        where,
        (*helps, _more("flash", need, target, "" if is_built else "the code")),
    )


def _instructions(target: McuTarget, rows: Rows, need: int) -> Overrun:
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
    return Overrun(
        "DS0603",
        f"a run takes {need:,} instructions, and {limit:,} are allowed: {_over(need, limit)}",
        "instructions by layer:\n" + _listed(listed or ["not counted by layer: the simulator counts whole runs"]),
        (*helps, "a smaller input, a larger stride or fewer channels in the layers above"),
    )


def _more(what: str, need: int, target: McuTarget, unknown: str = "") -> str:
    """Say which boards of the same core would do. unknown: what comes on top of `need`."""
    fitting = [
        board.name
        for board in known_boards().values()
        if board.core == target.core
        and board != target.board
        and (board.ram_bytes if what == "ram" else board.flash_bytes) >= need
    ]
    boards = f", such as {' or '.join(fitting[:3])}" if fitting else ""
    if unknown:
        return f"a chip with more than {need:,} bytes{boards}: how much {unknown} take is known once the rest fits"
    rounded = format_bytes(-(-need // 1024) * 1024)
    return f"a chip with more{boards}: --{what} {rounded}, McuTarget({what}_bytes={need})"


def _name(row: Mapping[str, Any]) -> str:
    if row["layer"]:
        return f"{row['layer']} ({row['function']})"
    return f"{row['function']} at {row['source']}" if row["source"] else str(row["function"])


def _why(row: Mapping[str, Any]) -> str:
    return f": {row['kernel']}, because {row['why_generic']}" if row["why_generic"] else ""


def _flash_of(row: Mapping[str, Any]) -> int:
    return int(row["weight_bytes"]) + int(row.get("code_bytes") or 0)


def _alive(placement: Placement, step: int) -> str:
    """List the values that exist at a step, the largest first, and which of them lie over another."""
    buffers, offsets = placement.program.buffers, placement.plan.offsets
    alive = [life.name for life in placement.lives.values() if life.first <= step <= life.last]
    lines, placed = [], list[str]()
    for each in _by_size([buffers[name] for name in (*alive, *placement.states)]):
        over = ""
        if each.name in offsets:
            below = [n for n in placed if _share(offsets[n], buffers[n], offsets[each.name], each)]
            over = f", over {below[0]}" if below else ""
            placed.append(each.name)
        lines.append(_described(each) + over)
    return _listed(lines)


def _share(at: int, one: Buffer, start: int, other: Buffer) -> bool:
    return at < start + other.size_bytes and start < at + one.size_bytes


def _by_size(buffers: Sequence[Buffer]) -> list[Buffer]:
    return sorted(buffers, key=lambda buffer: (-buffer.size_bytes, buffer.name))


def _described(buffer: Buffer) -> str:
    return f"{buffer.name}: {buffer.size_bytes:,} bytes, {buffer.dtype} {list(buffer.shape)}"


def _largest(buffers: Sequence[Buffer]) -> str:
    return _listed([_described(each) for each in _by_size(buffers)])


def _listed(lines: Sequence[str]) -> str:
    more = len(lines) - _SHOWN
    return "\n".join([*lines[:_SHOWN], *([f"and {more} more"] if more > 0 else [])])
