"""Static offsets for buffers in one block of memory, so that buffers alive at the same step never overlap.

The problem is NP-hard (Garey and Johnson 1979, SR2, dynamic storage allocation); packing.py solves it, exactly where it can. The
lower bound is the largest sum of sizes alive at one step, or more where the search has shown that this does not suffice; a plan that
meets it is optimal.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from dsopt.passes.memory.liveness import Lifetime
from dsopt.passes.memory.packing import pack

ALIGNMENT = 16
"""Bytes that every offset is a multiple of: enough for any element type and for MVE loads."""


@dataclass(frozen=True)
class Plan:
    """Offsets in bytes by buffer name. The arena cannot be smaller than `lower_bound_bytes`; `optimal` says it is proven smallest."""

    offsets: Mapping[str, int]
    arena_bytes: int
    lower_bound_bytes: int
    optimal: bool

    @property
    def gap(self) -> float:
        """Return how much larger the arena is than its lower bound: 0.0 is proven optimal, 0.1 is at most 10% too large."""
        return self.arena_bytes / self.lower_bound_bytes - 1.0 if self.lower_bound_bytes else 0.0


def plan_arena(buffers: Sequence[Lifetime], alignment: int = ALIGNMENT, *, nodes: int | None = None) -> Plan:
    """Place buffers. Deterministic: the same buffers in the same order get the same offsets. Raises ValueError for double names.

    nodes: how many the search may look at, see `pack`; None chooses.
    """
    if len({buffer.name for buffer in buffers}) != len(buffers):
        raise ValueError("two buffers have the same name")
    packing = pack(
        [buffer.first for buffer in buffers],
        [buffer.last + 1 for buffer in buffers],
        [aligned(buffer.size_bytes, alignment) for buffer in buffers],
        nodes=nodes,
    )
    offsets = dict(zip((buffer.name for buffer in buffers), packing.offsets.tolist(), strict=True))
    plan = Plan(offsets, packing.height, packing.bound, packing.optimal)
    verify_plan(buffers, plan, alignment)
    return plan


def lower_bound(buffers: Iterable[Lifetime], alignment: int = ALIGNMENT) -> int:
    """Return the largest sum, over the steps, of the aligned sizes of the buffers alive."""
    changes: dict[int, int] = {}
    for buffer in buffers:
        size = aligned(buffer.size_bytes, alignment)
        changes[buffer.first] = changes.get(buffer.first, 0) + size
        changes[buffer.last + 1] = changes.get(buffer.last + 1, 0) - size
    alive = peak = 0
    for step in sorted(changes):
        alive += changes[step]
        peak = max(peak, alive)
    return peak


def aligned(size_bytes: int, alignment: int = ALIGNMENT) -> int:
    """Round a size up to a multiple of the alignment."""
    return -(-size_bytes // alignment) * alignment


def verify_plan(buffers: Sequence[Lifetime], plan: Plan, alignment: int = ALIGNMENT) -> None:
    """Check a plan without trusting who made it: raises ValueError naming the buffers that overlap or leave the arena.

    Sweeps over the steps with the buffers alive sorted by offset; where they do not overlap, one that begins can only overlap the
    nearest below and above it. O(n log n).
    """
    missing = sorted({buffer.name for buffer in buffers} ^ set(plan.offsets))
    if missing:
        raise ValueError(f"the plan does not place the same buffers: {', '.join(missing)}")
    alive: list[tuple[int, int, str]] = []
    ending: list[tuple[int, tuple[int, int, str]]] = []
    for buffer in sorted(buffers, key=lambda each: each.first):
        start = plan.offsets[buffer.name]
        if start < 0 or start % alignment or start + buffer.size_bytes > plan.arena_bytes:
            raise ValueError(
                f"{buffer.name} at {start} is not aligned, or leaves the {plan.arena_bytes} bytes of the arena"
            )
        while ending and ending[0][0] < buffer.first:
            gone = heappop(ending)[1]
            del alive[bisect_left(alive, gone)]
        span = (start, start + buffer.size_bytes, buffer.name)
        place = bisect_left(alive, span)
        for begin, end, name in alive[max(place - 1, 0) : place + 1]:
            if start < end and begin < span[1]:
                raise ValueError(f"{buffer.name} at {start} and {name} at {begin} overlap at step {buffer.first}")
        insort(alive, span)
        heappush(ending, (buffer.last, span))
