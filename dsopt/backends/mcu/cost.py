"""What a program takes on a core, for passes that choose between programs: its arena, and its cycles on the emulated core."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

from dsopt.backends.base import EmitOptions
from dsopt.backends.mcu.chosen import build_chosen
from dsopt.backends.mcu.emitter import Emitter, Placed
from dsopt.errors import ToolchainError
from dsopt.ir import Program
from dsopt.target import McuTarget

_CLOCK_HZ = 100_000_000
"""Of a core that is on no board: only ratios are asked for."""


class CoreCost(Mapping[str, float]):
    """{"seconds", "ram_bytes"}: each is found out when it is asked for, since seconds take a C compiler and an emulated run.

    ram_bytes: values and states, with no layer in patches.  seconds: estimated cycles, or instructions where they are all that is
    known, by the board's clock. Raises ToolchainError without a compiler or an emulator of the core.
    """

    def __init__(self, program: Program, target: McuTarget, options: EmitOptions) -> None:
        """Take a program that the backend can emit; no limit of the target is looked at."""
        self._program, self._target = program, target
        self._emitter = Emitter(target, options)

    def __getitem__(self, key: str) -> float:
        """Return one of the two."""
        if key == "ram_bytes":
            return float(self._placed.least_bytes)
        if key == "seconds":
            return self._cycles / (self._target.board.clock_hz if self._target.board else _CLOCK_HZ)
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        """Yield both keys."""
        return iter(("seconds", "ram_bytes"))

    def __len__(self) -> int:
        """Return 2."""
        return 2

    @cached_property
    def _placed(self) -> Placed:
        return self._emitter.place(self._program)

    @cached_property
    def _cycles(self) -> int:
        measured = build_chosen(self._emitter, self._placed).measured
        if measured.instructions is None:
            raise ToolchainError(
                "DS0605", f"{self._target.name} cannot be measured here, so its cycles cannot be cut",
                why=measured.why_not_run, fix="cut multiply-adds (of=macs) or bytes of RAM (of=ram)",
            )  # fmt: skip
        cycles = [cost.estimated_cycles for cost in measured.layers.values()]
        known = [each for each in cycles if each is not None]
        return sum(known) if known and len(known) == len(cycles) else measured.instructions
