"""Place the buffers of a loop program: values in the arena, states beside it, weights in flash."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dsopt.backends.tir.program import LoopProgram
from dsopt.passes.memory.arena import Plan, aligned
from dsopt.passes.memory.liveness import Lifetime, Step, lifetimes
from dsopt.passes.memory.overlay import Overlay, plan_overlays


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
