"""A build within budgets: whole if it fits, else in patches, else refused with everything that is too much."""

from __future__ import annotations

from dataclasses import replace

from dsopt.artifact import Artifact
from dsopt.backends.base import EmitOptions
from dsopt.backends.mcu.budget import RAM_EXCEEDED, Lowest, Overrun, check_counted, exceeded, refusal
from dsopt.backends.mcu.chosen import build_chosen
from dsopt.backends.mcu.emitter import Built, Emitter, Placed
from dsopt.backends.mcu.patched import Patches, Way
from dsopt.errors import BudgetError, ToolchainError
from dsopt.ir import Program
from dsopt.passes.patch.stage import why_none
from dsopt.target import LEAST_BYTES, McuTarget

_FAR = 4
"""Times a limit from which on exact figures are of no use, and an image is not worth its time."""


_LEAST_RAM = "see the way in patches with the least RAM, and what it costs: --optimize ram, and no --ram"


class Build:
    """One program for one target. `artifact` tries, and says what was found."""

    def __init__(self, program: Program, target: McuTarget, options: EmitOptions) -> None:
        self._program, self._target, self._options = program, target, options
        self._emitter = Emitter(target, options)
        self._patches = Patches(self._emitter, program)
        self._whole = self._emitter.place(program)

    def artifact(self) -> Artifact:
        """Return what fits into every budget. Raises BudgetError with all that are exceeded, ToolchainError without a compiler."""
        whole = self._whole
        found = exceeded(self._target, whole.placement, whole.rows)
        built = None if found else build_chosen(self._emitter, whole)
        if built is not None:
            found = exceeded(self._target, built.placement, built.rows, built.measured)
        if not found:
            assert built is not None
            check_counted(self._target, built.measured)
            return self._smaller(built)
        way = self._in_patches(found)
        if way is None:
            raise self._refusal(built)
        check_counted(self._target, way.built.measured)
        return self._patches.finished(way).artifact

    def _smaller(self, built: Built) -> Artifact:
        """Return what fits as a whole, in patches if RAM is what counts and they take less."""
        if self._options.optimize != "ram":
            return built.artifact
        way = self._patches.smallest(max(built.measured.ram_bytes - 1, LEAST_BYTES))
        if way is not None:
            return self._patches.finished(way).artifact
        why = why_none(self._program) or "there are no convolutions"
        if self._patches.count:
            why = "no way takes less RAM within the other budgets and with at most half as many products again"
        return replace(built.artifact, manifest={**built.artifact.manifest, "why_whole": why})

    def _in_patches(self, found: list[Overrun]) -> Way | None:
        if found[0].code != RAM_EXCEEDED:
            return None
        limit = self._target.ram_bytes
        if len(found) > 1:  # patches take more code and instructions, not less
            self._patches.look()
            return None
        way = None if self._options.optimize == "ram" else self._patches.cheapest(limit)
        return way or self._patches.smallest(limit) or self._patches.smallest(limit, is_needed=True)

    def _refusal(self, built: Built | None) -> BudgetError:
        """Return the error with all that is exceeded: for this, an image is built even if its values do not fit, unless by far."""
        unknown = ""
        if built is None and not self._is_near(self._whole):
            unknown = f"no image was built, as this is more than {_FAR} times too much"
        elif built is None:
            try:
                built = build_chosen(self._emitter, self._whole)
            except ToolchainError as problem:
                unknown = f"no image could be built: {problem.what}"
        if unknown:
            unknown += "; stack, code and instructions are not known"
        elif built is not None and built.measured.instructions is None:
            unknown = f"instructions and stack are not known: {built.measured.why_not_run}"
        lowest = self._lowest(is_known=not unknown)
        if built is None:
            return refusal(exceeded(self._target, self._whole.placement, self._whole.rows, None, lowest), unknown)
        return refusal(exceeded(self._target, built.placement, built.rows, built.measured, lowest), unknown)

    def _is_near(self, placed: Placed) -> bool:
        return (
            placed.least_bytes <= _FAR * self._target.ram_bytes
            and placed.placement.weight_bytes <= _FAR * self._target.flash_bytes
        )

    def _lowest(self, is_known: bool) -> Lowest:
        """Say how little RAM patches take."""
        found = self._patches.least()
        if found is None:
            why = why_none(self._program)
            return Lowest(f"in patches: no less, because {why}" if why else "")
        choice, placed = found
        if placed.least_bytes >= self._whole.least_bytes:
            return Lowest(f"in patches: no less, in {self._patches.count} ways that were tried")
        ways = f"the least of {self._patches.count} ways that were tried"
        parts = f"{choice.rows} x {choice.columns}" + (" strips" if choice.is_cascade else "")
        text = f"in patches: {parts} of {self._patches.layer(choice)} and all before it take"
        helps = (_LEAST_RAM,) if self._options.optimize != "ram" and self._patches.is_cheap(choice) else ()
        if not is_known or not self._is_near(placed):
            text = f"{text} {placed.least_bytes:,} bytes without stack and other variables, {ways}"
            return Lowest(text, placed.least_bytes, helps=helps)
        measured = self._patches.build(choice).built.measured
        text = f"{text} {measured.ram_bytes:,} bytes of RAM, {ways}, with {measured.flash_bytes:,} bytes of flash"
        counted = "" if measured.instructions is None else f" and {measured.instructions:,} instructions"
        return Lowest(text + counted, measured.ram_bytes, True, helps)
