"""Offsets where some results may lie over an operand that ends with them, as loops allow that read ahead of what they write.

First fit over several orders, bettered by moving one buffer at a time to the front of the order (as hill climbing does in TensorFlow
Lite's planner; here with a fixed seed and number of tries). A pair that may overlap only forbids the places at which it would not.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from dsopt.passes.memory.arena import ALIGNMENT, Plan, aligned, plan_arena
from dsopt.passes.memory.liveness import Lifetime

_Pairs = Mapping[tuple[str, str], "Overlay"]
"""By the names of output and input."""

_TRIES = 400
"""Moves that are tried after the fixed orders, for up to `_FEW` buffers."""
_FEW = 400


@dataclass(frozen=True)
class Overlay:
    """`output`, which begins at the step at which `input` ends, may share its bytes if it starts at least `shift` bytes before it.

    exact: only if both start at the same byte.
    """

    output: str
    input: str
    shift: int
    exact: bool = False

    def allows(self, lead: int) -> bool:
        """Return whether the output may start `lead` bytes before the input."""
        return lead == 0 if self.exact else lead >= self.shift


def plan_overlays(buffers: Sequence[Lifetime], overlays: Iterable[Overlay], alignment: int = ALIGNMENT) -> Plan:
    """Place buffers. Deterministic. Overlays whose lives do not touch in one step only are left out of account.

    Where an operand is read in two ways, both of its overlays hold.
    """
    lives = {buffer.name: buffer for buffer in buffers}
    pairs = joined(each for each in overlays if _touch(lives, each))
    plain = plan_arena(buffers, alignment)
    if not pairs:
        return plain
    bound = overlay_bound(buffers, pairs, alignment)
    best, best_bytes = dict(plain.offsets), plain.arena_bytes
    orders = [sorted(buffers, key=key) for key in _ORDERS]
    random_ = random.Random(0)
    current, current_bytes = orders[0], -1
    for attempt in range(len(orders) + (_TRIES if len(buffers) <= _FEW else 0)):
        if best_bytes <= bound:
            break
        order = orders[attempt] if attempt < len(orders) else _moved(current, random_)
        offsets, size = _place(order, pairs, alignment)
        if size < best_bytes:
            best, best_bytes = offsets, size
        if current_bytes < 0 or size <= current_bytes:
            current, current_bytes = order, size
    plan = Plan({buffer.name: best[buffer.name] for buffer in buffers}, best_bytes, bound, best_bytes == bound)
    verify_overlays(buffers, pairs, plan)
    return plan


def verify_overlays(buffers: Sequence[Lifetime], pairs: _Pairs, plan: Plan) -> None:
    """Check a plan without trusting who made it. Raises ValueError naming two buffers that share bytes and may not."""
    for number, a in enumerate(buffers):
        if plan.offsets[a.name] < 0 or plan.offsets[a.name] + a.size_bytes > plan.arena_bytes:
            raise ValueError(f"{a.name} leaves the {plan.arena_bytes} bytes of the arena")
        for b in buffers[:number]:
            start, other = plan.offsets[a.name], plan.offsets[b.name]
            if not a.meets(b) or start >= other + b.size_bytes or other >= start + a.size_bytes:
                continue
            ways = ((pairs.get((a.name, b.name)), other - start), (pairs.get((b.name, a.name)), start - other))
            if not any(pair is not None and pair.allows(lead) for pair, lead in ways):
                raise ValueError(f"{a.name} at {start} and {b.name} at {other} overlap")


def _touch(lives: Mapping[str, Lifetime], pair: Overlay) -> bool:
    """Return whether the input ends at the step at which the output begins."""
    return pair.output in lives and pair.input in lives and lives[pair.input].last == lives[pair.output].first


def joined(overlays: Iterable[Overlay]) -> dict[tuple[str, str], Overlay]:
    """Return what all overlays of each pair allow together; nothing where one wants the same byte and another an earlier one."""
    pairs: dict[tuple[str, str], Overlay] = {}
    for each in overlays:
        key = each.output, each.input
        before = pairs.get(key, each)
        pairs[key] = Overlay(*key, max(each.shift, before.shift), each.exact or before.exact)
    return {key: each for key, each in pairs.items() if not (each.exact and each.shift)}


def most_saved(pairs: Collection[Overlay], size: Mapping[str, int], alignment: int = ALIGNMENT) -> int:
    """Return an upper bound on the bytes that overlays of one step save together. size: aligned bytes by name.

    Outputs are disjoint, and so are inputs: neither shares more bytes than it has, and an output starts where at most one input
    does. Where a buffer is both, only the sum of all pairs is a bound.
    """
    shared = {
        (each.output, each.input): max(min(size[each.output] - aligned(each.shift, alignment), size[each.input]), 0)
        for each in pairs
    }
    outputs, inputs = {output for output, _ in shared}, {input_ for _, input_ in shared}
    if outputs & inputs:
        return sum(shared.values())
    exact = {(each.output, each.input) for each in pairs if each.exact}
    by_output = by_input = 0
    for output in outputs:
        fixed = max((saved for pair, saved in shared.items() if pair[0] == output and pair in exact), default=0)
        free = sum(saved for pair, saved in shared.items() if pair[0] == output and pair not in exact)
        by_output += min(size[output], fixed + free)
    for input_ in inputs:
        by_input += min(size[input_], sum(saved for pair, saved in shared.items() if pair[1] == input_))
    return min(by_output, by_input)


def overlay_bound(buffers: Sequence[Lifetime], pairs: _Pairs, alignment: int = ALIGNMENT) -> int:
    """Return the largest sum over the steps of the aligned sizes alive, less the most that overlays could save there."""
    size = {life.name: aligned(life.size_bytes, alignment) for life in buffers}
    at: dict[int, list[Overlay]] = {}
    first = {life.name: life.first for life in buffers}
    for pair in pairs.values():
        at.setdefault(first[pair.output], []).append(pair)
    changes: dict[int, int] = {}
    for life in buffers:
        changes[life.first] = changes.get(life.first, 0) + size[life.name]
        changes[life.last + 1] = changes.get(life.last + 1, 0) - size[life.name]
    alive = peak = 0
    for step in sorted(changes):
        alive += changes[step]
        peak = max(peak, alive - most_saved(at.get(step, []), size, alignment))
    return peak


def _moved(order: Sequence[Lifetime], random_: random.Random) -> list[Lifetime]:
    """Return the order with one buffer moved before another."""
    moved = list(order)
    moved.insert(random_.randrange(len(moved)), moved.pop(random_.randrange(len(moved))))
    return moved


def _place(order: Sequence[Lifetime], pairs: _Pairs, alignment: int) -> tuple[dict[str, int], int]:
    """Give each buffer the lowest place that those already placed do not forbid. Returns offsets and arena bytes."""
    offsets: dict[str, int] = {}
    placed: list[Lifetime] = []
    top = 0
    for buffer in order:
        size = aligned(buffer.size_bytes, alignment)
        forbidden = sorted(
            interval
            for other in placed
            if other.meets(buffer)
            for interval in _forbidden(buffer, size, other, offsets[other.name], pairs, alignment)
        )
        start = 0
        for low, high in forbidden:
            if low < start < high:
                start = high
        offsets[buffer.name] = start
        placed.append(buffer)
        top = max(top, start + size)
    return offsets, top


def _forbidden(
    buffer: Lifetime, size: int, other: Lifetime, at: int, pairs: _Pairs, alignment: int
) -> list[tuple[int, int]]:
    """Return the open intervals in which `buffer` may not start because of another at `at`."""
    low, high = at - size, at + aligned(other.size_bytes, alignment)
    over, under = pairs.get((buffer.name, other.name)), pairs.get((other.name, buffer.name))
    pair = over or under
    if pair is None:
        return [(low, high)]
    if pair.exact:
        return [(low, at), (at, high)]
    shift = aligned(pair.shift, alignment)
    return [(max(low, at - shift), high) if over else (low, min(high, at + shift))]


_ORDERS = (
    lambda b: (-b.size_bytes, b.first),
    lambda b: (-b.size_bytes * (b.last - b.first + 1), b.first),
    lambda b: (b.first, -b.size_bytes),
    lambda b: (-b.last, -b.size_bytes),
    lambda b: (-(b.last - b.first), -b.size_bytes, b.first),
)
