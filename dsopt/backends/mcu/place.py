"""Place the buffers of a loop program: values in the arena, states beside it, weights in flash."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dsopt.backends.mcu.consumed import growing
from dsopt.backends.mcu.line_buffers import with_line_buffers
from dsopt.backends.tir.program import LoopProgram, Overlap
from dsopt.passes.memory.arena import Plan, aligned, plan_arena
from dsopt.passes.memory.liveness import Lifetime, Step, lifetimes
from dsopt.passes.memory.order import find_order
from dsopt.passes.memory.overlay import Overlay, least_arena_bytes, plan_overlays


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


def place(program: LoopProgram, reorder: bool = True) -> Placement:
    """Plan the arena, and line up the states. The kernels are put into another order where that makes the arena smaller.

    reorder: False for programs whose order is meant: patch by patch.
    """
    if not reorder:
        program = with_line_buffers(program)
        return _place(program, _Uses(program))
    uses = _Uses(program)
    at_once = [each for each in uses.overlays(program) if not each.gradual]
    order = find_order(uses.steps(program), uses.sizes, uses.before, uses.after, at_once)
    if order.numbers == tuple(range(len(program.kernels))):
        return _place(program, uses)
    reordered = replace(program, kernels=tuple(program.kernels[number] for number in order.numbers))
    other = _place(reordered, uses)
    if other.plan.arena_bytes < least_arena_bytes(uses.lives(program), uses.overlays(program)):
        return other
    given = _place(program, uses)
    return other if other.plan.arena_bytes < given.plan.arena_bytes else given


def place_apart(program: LoopProgram) -> Placement:
    """Plan the arena for the kernels in their order, with no result over an operand: quickly, for what is run only to be measured."""
    return _place(program, _Uses(program), over=False)


class _Uses:
    """Which buffers of the arena hold values when, by the names of those that own the bytes."""

    def __init__(self, program: LoopProgram) -> None:
        self._roots = {name: program.root(name).name for name in program.buffers}
        self.sizes = {
            b.name: b.size_bytes
            for b in program.buffers.values()
            if b.alias_of is None and b.kind in ("temp", "input", "output")
        }
        self.before = [self._roots[name] for name in program.inputs]
        lasting = [*program.outputs, *(state.update for state in program.states)]
        self.after = [self._roots[name] for name in lasting if self._roots[name] in self.sizes]

    def steps(self, program: LoopProgram) -> list[Step]:
        """Return what each kernel reads and writes: states, too, which are read before their update."""
        return [
            Step(
                tuple(self._roots[name] for name in kernel.inputs),
                tuple(self._roots[name] for name in (*kernel.outputs, *kernel.scratch)),
            )
            for kernel in program.kernels
        ]

    def lives(self, program: LoopProgram) -> tuple[Lifetime, ...]:
        """Return from which kernel to which each buffer of the arena must stay whole."""
        return lifetimes(self.steps(program), self.sizes, self.before, self.after)

    def overlays(self, program: LoopProgram) -> list[Overlay]:
        """Return which results may lie over which operands."""
        found = (
            self._between_roots(program, each)
            for kernel in program.kernels
            for each in kernel.overlaps
            if self._roots[each.input] not in self.after
        )
        return [each for each in found if each is not None] + growing(program, self.after)

    def _between_roots(self, program: LoopProgram, each: Overlap) -> Overlay | None:
        """Return what an overlap of views means for those that own the bytes; None for nothing that the planner knows."""
        if self._roots[each.output] == self._roots[each.input]:
            return None
        further = program.offset(each.output) - program.offset(each.input)
        if each.exact and further:
            return None
        return Overlay(self._roots[each.output], self._roots[each.input], max(each.shift + further, 0), each.exact)


def _place(program: LoopProgram, uses: _Uses, over: bool = True) -> Placement:
    lives = uses.lives(program)
    states: dict[str, int] = {}
    top = 0
    for state in program.states:
        states[state.buffer] = top
        top += aligned(program.buffers[state.buffer].size_bytes)
    weights = sum(b.size_bytes for b in program.buffers.values() if b.kind == "weight" and b.alias_of is None)
    plan = plan_overlays(lives, uses.overlays(program)) if over else plan_arena(lives, nodes=0)
    return Placement(program, plan, {life.name: life for life in lives}, states, top, weights)
