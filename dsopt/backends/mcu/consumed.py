"""Values that grow, part by part, over the bytes of an operand that is read part by part: of what lies before both, nothing is needed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from dsopt.backends.tir.program import LoopProgram
from dsopt.passes.memory.overlay import Overlay


@dataclass
class _Touched:
    """Which kernels read and write the bytes of a buffer: by number, where a read begins and where a write ends."""

    reads: dict[int, int] = field(default_factory=dict)
    writes: dict[int, int] = field(default_factory=dict)


def growing(program: LoopProgram, lasting: Collection[str]) -> list[Overlay]:
    """Return which roots may grow over which: they may start so many bytes before it that what is written was read.

    The order of the kernels is taken as it is. lasting: roots whose bytes must be whole at the end of a run.
    """
    touched = _touched(program)
    grown = {name: each for name, each in touched.items() if len(each.writes) > 1}
    eaten = {
        name: each
        for name, each in touched.items()
        if len(each.reads) > 1 and any(each.reads.values()) and name not in lasting
    }
    found = []
    for output, one in grown.items():
        for operand, other in eaten.items():
            kernels = set(one.writes) | set(one.reads)
            is_later = min(one.writes) > max(other.writes, default=-1) and min(one.writes) < max(other.reads)
            if output == operand or not is_later or kernels & set(other.reads):
                continue
            shift = _shift(one, other)
            if shift < max(one.writes.values()):  # else they lie apart
                found.append(Overlay(output, operand, shift, gradual=True))
    return found


def _touched(program: LoopProgram) -> dict[str, _Touched]:
    found: dict[str, _Touched] = {}
    for number, kernel in enumerate(program.kernels):
        for name in kernel.inputs:
            root, offset = program.root(name), program.offset(name)
            reads = found.setdefault(root.name, _Touched()).reads
            reads[number] = min(reads.get(number, offset), offset)
        for name in (*kernel.outputs, *kernel.scratch):
            root, end = program.root(name), program.offset(name) + program.buffers[name].size_bytes
            writes = found.setdefault(root.name, _Touched()).writes
            writes[number] = max(writes.get(number, end), end)
    return {name: each for name, each in found.items() if program.buffers[name].kind in ("temp", "input", "output")}


def _shift(output: _Touched, operand: _Touched) -> int:
    """Return by how many bytes the output must start before the operand, so that no byte is written before its last read."""
    most = end = 0
    for number in sorted({*output.writes, *operand.reads}):
        end = max(end, output.writes.get(number, 0))
        if number in operand.reads:
            most = max(most, end - operand.reads[number])
    return most
