"""Strips, line buffers, views and what grows over an operand: judged by a memory that knows whose byte is where."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import dsopt
from dsopt.backends.base import EmitOptions
from dsopt.backends.mcu.consumed import growing
from dsopt.backends.mcu.emitter import Emitter
from dsopt.backends.mcu.kernels import special_lowerings
from dsopt.backends.mcu.place import Placement, place
from dsopt.backends.tir.lower import lower
from dsopt.ir import Program
from dsopt.passes.patch import Patch
from dsopt.passes.patch.cascade import Cascade
from dsopt.passes.patch.stage import stages
from dsopt.runtime.simulated import open_executor
from dsopt.target import McuTarget
from tests.backends.tir.host_runner import run_on_host
from tests.backends.tir.integer_modules import Settings, conv, integers
from tests.simulate.images import needs_qemu

M4 = McuTarget("cortex-m4", ram_bytes=1 << 20)


def lost_bytes(placement: Placement) -> list[str]:
    """Run a placement on a memory of names: each kernel must find, of each value that it reads, the bytes that were written for it."""
    program = placement.program
    owner: dict[int, tuple[str, int]] = {}
    problems = []

    def places(name: str) -> list[tuple[int, tuple[str, int]]]:
        root, offset = program.root(name), program.offset(name)
        start = placement.plan.offsets[root.name]
        return [(start + at, (root.name, at)) for at in range(offset, offset + program.buffers[name].size_bytes)]

    for name in program.inputs:
        owner |= dict(places(name))
    for kernel in program.kernels:
        for name in kernel.inputs:
            if program.root(name).kind == "weight":
                continue
            kept = [owner.get(place) == whose for place, whose in places(name)]
            # rows that are cut out of planes are read, what lies between them is not
            if not (all(kept) if kernel.choice != "copies of rows" else kept[0] and kept[-1]):
                problems.append(f"{kernel.name} reads {name}, of which {kept.count(False)} bytes are lost")
        for name in (*kernel.scratch, *kernel.outputs):
            owner |= dict(places(name))
    for name in program.outputs:
        problems += [f"the output {name} is lost" for place, whose in places(name) if owner.get(place) != whose][:1]
    return problems


def chain(height: int, width: int, residual: bool = True) -> Program:
    """Return a network that begins wide: 3 -> 8 -> 16 channels, depthwise and 1x1, perhaps a residual, and half the size in between."""
    s = [Settings(number) for number in range(8)]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = conv((8, 3, 3, 3), s[0], stride=(2,), padding=(1,))
            self.depth = conv((8, 1, 3, 3), s[1], padding=(1,), groups=8)
            self.point = conv((16, 8, 1, 1), s[2])
            self.down = conv((16, 1, 3, 3), s[3], stride=(2,), padding=(1,), groups=16)
            self.last = conv((16, 16, 1, 1), s[4])
            self.head = conv((4, 16, 3, 3), s[5], stride=(2,))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.down(self.point(self.depth(self.stem(x))))
            y = self.last(x)
            if residual:
                y = torch.ops.dsopt.q_add(y, x, 5, -5, 700_001, -450_000, 20, -7, -128, 120, 8)
            z: torch.Tensor = self.head(y)
            return z

    x = torch.from_numpy(integers(np.random.default_rng(2), (1, 3, height, width)).astype(np.int8))
    return dsopt.capture(Net().eval(), (x,))


@settings(max_examples=25)
@given(st.integers(12, 30), st.integers(12, 24), st.booleans(), st.data())
def test_every_kernel_finds_what_was_written_for_it(
    height: int, width: int, residual: bool, data: st.DataObject
) -> None:
    program = chain(height, width, residual)
    stage = data.draw(st.sampled_from(list(stages(program))))
    size = [int(each) for each in program.shape(stage.end)[2:]]
    columns = data.draw(st.integers(1, min(size[1], 3)))
    if data.draw(st.booleans()):
        way: Patch | Cascade = Cascade(stage.end.name, data.draw(st.integers(1, height)), columns)
    else:
        way = Patch(stage.end.name, data.draw(st.integers(1, size[0])), columns)
    parts, _ = dsopt.PassManager((way,)).run(program)
    loops = lower(parts, special_lowerings(M4))
    assert lost_bytes(place(loops, reorder=False)) == []
    assert lost_bytes(place(loops)) == []


def test_bytes_that_are_written_too_early_are_noticed() -> None:
    """The memory of names finds a result that grows over its operand too early, and nothing wrong where it may begin."""
    program, _ = dsopt.PassManager((Cascade("q_conv_3", 2),)).run(chain(48, 48, False))
    right = place(lower(program, special_lowerings(M4)), reorder=False)
    pairs = [each for each in growing(right.program, ()) if each.input == "x"]
    pair = max(pairs, key=lambda each: right.lives[each.output].size_bytes)
    assert pair.shift < right.lives[pair.output].size_bytes

    def lost(start: int) -> list[str]:
        """Put x behind all else, and the result at a place before or in it."""
        end = right.plan.arena_bytes
        offsets = {**right.plan.offsets, "x": end + 4096, pair.output: end + 4096 + start}
        return lost_bytes(replace(right, plan=replace(right.plan, offsets=offsets)))

    assert lost(-pair.shift) == []
    assert any(" reads x_" in each for each in lost(1000 - pair.shift))


@pytest.mark.parametrize("core", ["cortex-m0plus", "cortex-m4", "cortex-m55"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (4, 1), (7, 2)])
def test_portable_code_of_strips_gives_the_bits_of_the_whole(
    core: str, rows: int, columns: int, tmp_path: Path
) -> None:
    program = chain(22, 18)
    end = list(stages(program))[-1].end.name
    strips, _ = dsopt.PassManager((Cascade(end, rows, columns),)).run(program)
    x = torch.from_numpy(integers(np.random.default_rng(rows), (1, 3, 22, 18)).astype(np.int8))
    (got,), _ = run_on_host(strips, (x,), tmp_path, special=special_lowerings(McuTarget(core)))
    np.testing.assert_array_equal(got, program.run(x)[0].numpy())


@pytest.mark.mcu
@pytest.mark.parametrize("core", ["cortex-m0plus", "cortex-m4", pytest.param("cortex-m55", marks=needs_qemu)])
def test_strips_on_emulated_cores_give_the_bits_of_the_whole_in_less_memory(core: str) -> None:
    program = chain(40, 36)
    emitter = Emitter(McuTarget(core), EmitOptions(name="net"))
    whole = emitter.place(program)
    strips, _ = dsopt.PassManager((Cascade("q_conv_3", 4),)).run(program)
    placed = emitter.place(strips, reorder=False)
    assert placed.least_bytes < whole.least_bytes
    executor = open_executor(emitter.build(placed).artifact)
    for seed in range(3):
        x = torch.from_numpy(integers(np.random.default_rng(seed), (1, 3, 40, 36)).astype(np.int8))
        (got,) = executor.run({program.signature.inputs[0].name: x.numpy()}).values()
        np.testing.assert_array_equal(got, program.run(x)[0].numpy())


def test_each_row_is_computed_once_where_it_belongs() -> None:
    """Rows of a slice are no copy, and what is joined is computed in place: only rows that are kept move, and parts of planes."""
    program, _ = dsopt.PassManager((Cascade("q_conv_3", 4),)).run(chain(40, 36, False))
    loops = place(lower(program, special_lowerings(M4)), reorder=False).program
    moves = [kernel for kernel in loops.kernels if "_slice" in kernel.name or "_cat" in kernel.name]
    assert {kernel.choice for kernel in moves} == {"copy", "copies of rows"}
    for kernel in moves:
        if kernel.choice == "copy":  # within a line buffer, or while it gets its full size
            assert loops.buffers[kernel.outputs[0]].size_bytes <= 3 * 18 * 16
    lines = {loops.root(k.outputs[0]).name for k in moves if loops.root(k.outputs[0]) == loops.root(k.inputs[0])}
    assert lines
