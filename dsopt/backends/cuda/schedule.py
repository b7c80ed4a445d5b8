"""Bind the grid of a loop nest to the blocks and threads of a GPU.

A kernel of a LoopProgram is one spatial block under a grid of independent steps. The whole grid becomes one index, split into blocks
of threads, with neighbouring threads on neighbouring steps of the innermost loop, so that the writes of a warp are adjacent.
Reductions stay serial inside a thread: no shared memory, no barrier, nothing whose order could change a result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import tvm
from tvm.s_tir import Schedule

THREADS_PER_BLOCK = 128
"""Four warps: enough to hide latency with several blocks a multiprocessor, and at most 512 registers a thread."""

FILLED_BLOCKS = 132
"""Multiprocessors of the largest common GPU (H100). A grid with fewer full blocks than this uses smaller ones, to reach them all."""

WARP = 32


@dataclass(frozen=True)
class Launch:
    """The shape of a launch, one-dimensional: blocks, and threads in each."""

    blocks: int
    threads: int


@dataclass(frozen=True)
class ScheduledKernel:
    """A function whose loops are bound to threads, and the launch that covers its grid."""

    function: Any
    launch: Launch


def launch_shape(steps: int) -> Launch:
    """Choose blocks and threads for `steps` independent steps, steps >= 1.

    A multiple of a warp, at most THREADS_PER_BLOCK; smaller where full blocks would leave multiprocessors idle.
    """
    threads = THREADS_PER_BLOCK
    while threads > WARP and math.ceil(steps / threads) < FILLED_BLOCKS:
        threads //= 2
    return Launch(math.ceil(steps / threads), threads)


def schedule(function: Any) -> ScheduledKernel:
    """Fuse the grid around the one block of `function` and bind it to blockIdx.x and threadIdx.x."""
    work = Schedule(tvm.IRModule({"main": function}))
    (block,) = work.get_child_blocks(work.get_sblock("root"))
    loops = work.get_loops(block)
    steps = math.prod(int(work.get(loop).extent) for loop in loops)
    launch = launch_shape(steps)
    fused = work.fuse(*loops) if loops else work.add_unit_loop(block)
    outer, inner = work.split(fused, [None, launch.threads])
    work.bind(outer, "blockIdx.x")
    work.bind(inner, "threadIdx.x")
    return ScheduledKernel(work.mod["main"], launch)
