"""The shape of a launch.

The grid of a kernel becomes one index, split into blocks of threads, with neighbouring threads on neighbouring steps of the innermost
loop, so that the writes of a warp are adjacent. Reductions stay serial inside a thread: no shared memory, no barrier, nothing whose
order could change a result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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


def launch_shape(steps: int) -> Launch:
    """Choose blocks and threads for `steps` independent steps, steps >= 1.

    A multiple of a warp, at most THREADS_PER_BLOCK; smaller where full blocks would leave multiprocessors idle.
    """
    threads = THREADS_PER_BLOCK
    while threads > WARP and math.ceil(steps / threads) < FILLED_BLOCKS:
        threads //= 2
    return Launch(math.ceil(steps / threads), threads)
