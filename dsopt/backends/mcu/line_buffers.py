"""Line buffers: rows that are kept from strip to strip move to the front of the buffer that they are in, instead of to another one."""

from __future__ import annotations

from dataclasses import replace

from dsopt.backends.mcu.kernels.copying import COPY
from dsopt.backends.tir.program import LoopProgram


def with_line_buffers(program: LoopProgram) -> LoopProgram:
    """Make one buffer of two where a copy is the last to read the one and the first to write the other, not behind where it reads.

    The order of the kernels is taken as it is.
    """
    buffers = dict(program.buffers)
    lasting = {program.root(name).name for name in (*program.outputs, *(state.update for state in program.states))}
    found = replace(program, buffers=buffers)
    first, last = _uses(program)
    for number, kernel in enumerate(program.kernels):
        if kernel.choice != COPY:
            continue
        source, target = (found.root(name) for name in (kernel.inputs[0], kernel.outputs[0]))
        forward = found.offset(kernel.inputs[0]) - found.offset(kernel.outputs[0])
        if {source.kind, target.kind} != {"temp"} or {source.name, target.name} & lasting or source == target:
            continue
        if last[source.name] == number == first[target.name] and forward >= 0:
            small, large = sorted((source, target), key=lambda each: each.size_bytes)
            buffers[small.name] = replace(small, alias_of=large.name)
            first[large.name], last[large.name] = first[source.name], last[target.name]
    return found


def _uses(program: LoopProgram) -> tuple[dict[str, int], dict[str, int]]:
    """Return the first and the last kernel that uses the bytes of each root."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for number, kernel in enumerate(program.kernels):
        for name in kernel.arguments:
            root = program.root(name).name
            first.setdefault(root, number)
            last[root] = number
    return first, last
