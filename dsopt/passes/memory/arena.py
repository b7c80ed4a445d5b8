"""Static offsets for buffers in one block of memory, so that buffers alive at the same step never overlap.

The problem is NP-hard (Garey and Johnson 1979, SR2, dynamic storage allocation). This is the best-effort answer at once: first fit
and best fit over several orders, the smallest arena wins. The lower bound is the largest sum of sizes alive at one step; a plan that
meets it is optimal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from dsopt.passes.memory.liveness import Lifetime

ALIGNMENT = 16
"""Bytes that every offset is a multiple of: enough for any element type and for MVE loads."""

_EFFORT = 2_000
"""Above this number of buffers one order is tried, since a fit takes time that grows with the square of their number."""


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


def plan_arena(buffers: Sequence[Lifetime], alignment: int = ALIGNMENT) -> Plan:
    """Place buffers. Deterministic: the same buffers in the same order get the same offsets. Raises ValueError for double names."""
    if len({buffer.name for buffer in buffers}) != len(buffers):
        raise ValueError("two buffers have the same name")
    bound = lower_bound(buffers, alignment)
    best: dict[str, int] = {}
    best_bytes: int | None = None
    orders = _ORDERS[: 1 if len(buffers) > _EFFORT else None]
    for order, choose in product(orders, (_first_fit, _best_fit)):
        if best_bytes == bound:
            break
        offsets, arena = _place(sorted(buffers, key=order), choose, alignment)
        if best_bytes is None or arena < best_bytes:
            best, best_bytes = offsets, arena
    arena_bytes = best_bytes or 0
    plan = Plan({buffer.name: best[buffer.name] for buffer in buffers}, arena_bytes, bound, arena_bytes == bound)
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

    Sweeps over the steps; at each start of a life, the bytes are compared with those of every buffer that is alive.
    """
    missing = sorted({buffer.name for buffer in buffers} ^ set(plan.offsets))
    if missing:
        raise ValueError(f"the plan does not place the same buffers: {', '.join(missing)}")
    alive: list[Lifetime] = []
    for buffer in sorted(buffers, key=lambda each: each.first):
        start = plan.offsets[buffer.name]
        if start < 0 or start % alignment or start + buffer.size_bytes > plan.arena_bytes:
            raise ValueError(
                f"{buffer.name} at {start} is not aligned, or leaves the {plan.arena_bytes} bytes of the arena"
            )
        alive = [other for other in alive if other.last >= buffer.first]
        for other in alive:
            begin = plan.offsets[other.name]
            if start < begin + other.size_bytes and begin < start + buffer.size_bytes:
                raise ValueError(f"{buffer.name} at {start} and {other.name} at {begin} overlap at step {buffer.first}")
        alive.append(buffer)


# ---- greedy placement ----

_Gap = tuple[int, int | None]
"""Free bytes between two placed buffers: start, and end or None for the open end."""


def _first_fit(gaps: Sequence[_Gap]) -> int:
    return gaps[0][0]


def _best_fit(gaps: Sequence[_Gap]) -> int:
    closed = [(end - start, start) for start, end in gaps if end is not None]
    return min(closed)[1] if closed else gaps[-1][0]


def _place(
    order: Sequence[Lifetime], choose: Callable[[Sequence[_Gap]], int], alignment: int
) -> tuple[dict[str, int], int]:
    """Give each buffer in turn a gap among those already placed that are alive with it. Returns offsets and arena bytes."""
    placed: list[tuple[int, int, Lifetime]] = []
    offsets: dict[str, int] = {}
    for buffer in order:
        size = aligned(buffer.size_bytes, alignment)
        spans = sorted((start, end) for start, end, other in placed if other.meets(buffer))
        start = choose(_gaps(spans, size))
        offsets[buffer.name] = start
        placed.append((start, start + size, buffer))
    return offsets, max((end for _, end, _ in placed), default=0)


def _gaps(spans: Sequence[tuple[int, int]], size: int) -> list[_Gap]:
    """Return the free gaps of at least `size` bytes between spans sorted by start; the last one is open."""
    gaps: list[_Gap] = []
    top = 0
    for start, end in spans:
        if start - top >= size:
            gaps.append((top, start))
        top = max(top, end)
    return [*gaps, (top, None)]


def _steps(buffer: Lifetime) -> int:
    return buffer.last - buffer.first + 1


_ORDERS: tuple[Callable[[Lifetime], tuple[int, ...]], ...] = (
    lambda b: (-b.size_bytes, -_steps(b), b.first),
    lambda b: (-b.size_bytes * _steps(b), b.first),
    lambda b: (-_steps(b), -b.size_bytes, b.first),
    lambda b: (b.first, -b.size_bytes),
    lambda b: (-b.last, -b.size_bytes),
    lambda b: (b.first, b.last, -b.size_bytes),
)
"""What is placed early: the large, those that take most room in space and time, the long-lived, or simply in order of time."""
