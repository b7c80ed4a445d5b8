"""Place the buffers of a loop program: values in the arena, states beside it, weights in flash. Refuse what cannot fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dsopt.backends.tir.program import Buffer, LoopProgram
from dsopt.errors import BudgetError
from dsopt.passes.memory.arena import Plan, aligned
from dsopt.passes.memory.liveness import Lifetime, Step, lifetimes
from dsopt.passes.memory.overlay import Overlay, plan_overlays
from dsopt.target import McuTarget


@dataclass(frozen=True)
class Placement:
    """Where every buffer is: `plan` for the arena, `states` as offsets into a block of their own that outlives a run."""

    program: LoopProgram
    plan: Plan
    lives: Mapping[str, Lifetime]
    states: Mapping[str, int]
    state_bytes: int
    weight_bytes: int

    def manifest(self) -> dict[str, Any]:
        """Return the memory map as data: bytes, the lower bound, and each buffer with offset, size and life in layers."""
        kernels = self.program.kernels
        buffers = [
            {
                "name": life.name,
                "offset": self.plan.offsets[life.name],
                "bytes": life.size_bytes,
                "first": life.first,
                "last": life.last,
                "shape": list(self.program.buffers[life.name].shape),
                "layer": kernels[life.first].layer if kernels else "",
            }
            for life in sorted(self.lives.values(), key=lambda each: (each.first, self.plan.offsets[each.name]))
        ]
        return {
            "arena_bytes": self.plan.arena_bytes,
            "arena_lower_bound_bytes": self.plan.lower_bound_bytes,
            "arena_optimal": self.plan.optimal,
            "state_bytes": self.state_bytes,
            "weight_bytes": self.weight_bytes,
            "buffers": buffers,
        }


def place(program: LoopProgram) -> Placement:
    """Plan the arena, and line up the states."""
    arena = {
        b.name: b for b in program.buffers.values() if b.alias_of is None and b.kind in ("temp", "input", "output")
    }
    roots = {name: program.root(name).name for name in program.buffers}
    steps = [
        Step(
            tuple(roots[name] for name in kernel.inputs),
            tuple(roots[name] for name in (*kernel.outputs, *kernel.scratch)),
        )
        for kernel in program.kernels
    ]
    lasting = [*program.outputs, *(state.update for state in program.states)]
    after = [roots[name] for name in lasting if roots[name] in arena]
    lives = lifetimes(
        steps, {name: b.size_bytes for name, b in arena.items()}, [roots[n] for n in program.inputs], after
    )
    states: dict[str, int] = {}
    top = 0
    for state in program.states:
        states[state.buffer] = top
        top += aligned(program.buffers[state.buffer].size_bytes)
    weights = sum(b.size_bytes for b in program.buffers.values() if b.kind == "weight" and b.alias_of is None)
    overlays = [
        Overlay(roots[each.output], roots[each.input], each.shift, each.exact)
        for kernel in program.kernels
        for each in kernel.overlaps
        if roots[each.input] not in after
    ]
    return Placement(program, plan_overlays(lives, overlays), {life.name: life for life in lives}, states, top, weights)


def check_budget(placement: Placement, target: McuTarget) -> None:
    """Raise BudgetError, naming the largest buffers, if arena and states or the weights alone exceed the target's memories."""
    need = placement.plan.arena_bytes + placement.state_bytes
    if need > target.ram_bytes:
        raise ram_budget_error(placement, target, need)
    if placement.weight_bytes > target.flash_bytes:
        raise flash_budget_error(placement, target, placement.weight_bytes)


def ram_budget_error(placement: Placement, target: McuTarget, need_bytes: int) -> BudgetError:
    """Describe RAM that does not suffice, with the largest values alive at the worst step."""
    program = placement.program
    peak = _peak_step(placement)
    alive = [life.name for life in placement.lives.values() if life.first <= peak <= life.last]
    at = f" while {program.kernels[peak].name} runs" if program.kernels else ""
    return BudgetError(
        "DS0601",
        f"the model needs {need_bytes:,} bytes of RAM, and {target.name} here has {target.ram_bytes:,}",
        where=f"the largest values{at}:\n" + _largest(program, [*alive, *placement.states]),
        fix=f"use a smaller input or fewer channels there, or a chip with more memory: McuTarget(ram_bytes={need_bytes})",
    )


def flash_budget_error(placement: Placement, target: McuTarget, need_bytes: int) -> BudgetError:
    """Describe flash that does not suffice, with the largest weights."""
    program = placement.program
    weights = [b.name for b in program.buffers.values() if b.kind == "weight" and b.alias_of is None]
    return BudgetError(
        "DS0602",
        f"code and weights need {need_bytes:,} bytes of flash, and {target.name} here has {target.flash_bytes:,}",
        where="the largest weights:\n" + _largest(program, weights),
        fix=f"make these layers smaller, or choose a chip with more flash: McuTarget(flash_bytes={need_bytes})",
    )


def _largest(program: LoopProgram, names: Sequence[str]) -> str:
    buffers = sorted((program.buffers[name] for name in names), key=lambda buffer: (-buffer.size_bytes, buffer.name))
    return "\n".join(map(_describe, buffers[:5]))


def _describe(buffer: Buffer) -> str:
    return f"{buffer.name}: {buffer.size_bytes:,} bytes, {buffer.dtype} {list(buffer.shape)}"


def _peak_step(placement: Placement) -> int:
    lives = placement.lives.values()
    steps = range(max(len(placement.program.kernels), 1))
    return max(steps, key=lambda step: sum(life.size_bytes for life in lives if life.first <= step <= life.last))
