"""Offsets where some results may lie over an operand that ends with them, as loops allow that read ahead of what they write.

First fit over several orders, bettered by moving one buffer at a time to the front of the order (as hill climbing does in TensorFlow
Lite's planner; here with a fixed seed and number of tries); then branch and bound, until proven smallest or its nodes are spent. A
pair that may overlap only forbids the places at which it would not.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from dsopt.passes.memory.arena import ALIGNMENT, Plan, aligned, lower_bound, plan_arena
from dsopt.passes.memory.liveness import Lifetime
from dsopt.passes.memory.overlay_search import Conflicts, raised, search

_Pairs = Mapping[tuple[str, str], "Overlay"]
"""By the names of output and input."""

_TRIES, _AIMED_TRIES = 400, 1_600
"""Moves that are tried after the fixed orders, for up to `_FEW` buffers."""
_FEW = 400
_SEARCH_WORK = 4_000_000
"""Pairs of buffers that the search may look at: about a second."""


@dataclass(frozen=True)
class Overlay:
    """`output`, which begins at the step at which `input` ends, may share its bytes if it starts at least `shift` bytes before it.

    exact: only if both start at the same byte.  gradual: also where the input ends later: it is read part by part, and the output
    written so, each behind what was read.
    """

    output: str
    input: str
    shift: int
    exact: bool = False
    gradual: bool = False

    def allows(self, lead: int) -> bool:
        """Return whether the output may start `lead` bytes before the input."""
        return lead == 0 if self.exact else lead >= self.shift


def plan_overlays(
    buffers: Sequence[Lifetime], overlays: Iterable[Overlay], alignment: int = ALIGNMENT, *, nodes: int | None = None
) -> Plan:
    """Place buffers. Deterministic. Overlays whose lives do not touch in one step only are left out of account.

    Where an operand is read in two ways, both of its overlays hold. nodes: buffers that the search may place; None chooses.
    """
    lives = {buffer.name: buffer for buffer in buffers}
    pairs = joined(each for each in overlays if _touch(lives, each))
    if not pairs:
        return plan_arena(buffers, alignment)
    saved = _saved_at(buffers, pairs, alignment)
    bound = _lower_bound(buffers, saved, alignment)
    plain = plan_arena(buffers, alignment, nodes=0)
    best, best_bytes = dict(plain.offsets), plain.arena_bytes
    conflicts = Conflicts(buffers, pairs, {step: each // alignment for step, each in saved.items()}, alignment)
    if best_bytes > bound:
        bound = raised(conflicts, bound // alignment, best_bytes // alignment) * alignment
    if best_bytes > bound:
        starts, top = _hill_climb(conflicts, bound // alignment)
        if top * alignment < best_bytes:
            best, best_bytes = _offsets(buffers, starts, alignment), top * alignment
    if lower_bound(buffers, alignment) < best_bytes:  # it may be that no overlay is needed
        plain = plan_arena(buffers, alignment)
        if plain.arena_bytes < best_bytes:
            best, best_bytes = dict(plain.offsets), plain.arena_bytes
    if best_bytes > bound:
        budget = _SEARCH_WORK // max(len(buffers), 8) ** 2 if nodes is None else nodes
        found = search(conflicts, best_bytes // alignment, bound // alignment, budget)
        if found.starts is not None:
            best, best_bytes = _offsets(buffers, found.starts, alignment), found.height * alignment
        bound = found.bound * alignment
    plan = Plan({buffer.name: best[buffer.name] for buffer in buffers}, best_bytes, bound, best_bytes == bound)
    verify_overlays(buffers, pairs, plan)
    return plan


def least_arena_bytes(buffers: Sequence[Lifetime], overlays: Iterable[Overlay], alignment: int = ALIGNMENT) -> int:
    """Return what no arena is smaller than: bytes alive at the worst step, less the most that overlays could save there."""
    lives = {buffer.name: buffer for buffer in buffers}
    pairs = joined(each for each in overlays if _touch(lives, each))
    return _lower_bound(buffers, _saved_at(buffers, pairs, alignment), alignment)


def _hill_climb(conflicts: Conflicts, bound: int) -> tuple[list[int], int]:
    """Fit in fixed orders, then in orders with one buffer moved: any at first, then one of those below the highest."""
    lives, size = conflicts.buffers, conflicts.size
    orders = [sorted(range(len(lives)), key=lambda number: key(lives[number])) for key in _ORDERS]
    random_ = random.Random(0)
    current, (starts, top) = orders[0], conflicts.first_fit(orders[0])
    best = starts
    for order in orders[1:]:
        if top <= bound:
            break
        found, end = conflicts.first_fit(order)
        if end <= top:
            best = found if end < top else best
            current, starts, top = order, found, end
    highest = None
    for attempt in range(_TRIES + _AIMED_TRIES if len(lives) <= _FEW else 0):
        if top <= bound:
            break
        if attempt < _TRIES:
            there, here = random_.randrange(len(current)), random_.randrange(len(current))
        else:
            if highest is None:
                highest = max(range(len(lives)), key=lambda number: (starts[number] + size[number], -number))
            here = current.index(random_.choice([highest, *conflicts.near[highest]]))
            there = random_.randrange(len(current))
        moved = list(current)
        moved.insert(there, moved.pop(here))
        fitted = conflicts.refit(moved, starts, here, there, top)
        if fitted is not None:
            current, starts, highest = moved, fitted, None
            end = max(start + units for start, units in zip(starts, size, strict=True))
            best, top = starts if end < top else best, end
    return best, top


def _offsets(buffers: Sequence[Lifetime], starts: Sequence[int], alignment: int) -> dict[str, int]:
    return {buffer.name: start * alignment for buffer, start in zip(buffers, starts, strict=True)}


def verify_overlays(buffers: Sequence[Lifetime], pairs: _Pairs, plan: Plan) -> None:
    """Check a plan without trusting who made it. Raises ValueError naming two buffers that share bytes and may not.

    Sweeps over the steps; each buffer that begins is compared with all that are alive.
    """
    missing = sorted({buffer.name for buffer in buffers} ^ set(plan.offsets))
    if missing:
        raise ValueError(f"the plan does not place the same buffers: {', '.join(missing)}")
    alive: list[Lifetime] = []
    for a in sorted(buffers, key=lambda each: each.first):
        start = plan.offsets[a.name]
        if start < 0 or start + a.size_bytes > plan.arena_bytes:
            raise ValueError(f"{a.name} leaves the {plan.arena_bytes} bytes of the arena")
        alive = [other for other in alive if other.last >= a.first]
        for b in alive:
            other = plan.offsets[b.name]
            if start >= other + b.size_bytes or other >= start + a.size_bytes:
                continue
            ways = ((pairs.get((a.name, b.name)), other - start), (pairs.get((b.name, a.name)), start - other))
            if not any(pair is not None and pair.allows(lead) for pair, lead in ways):
                raise ValueError(f"{a.name} at {start} and {b.name} at {other} overlap")
        alive.append(a)


def _touch(lives: Mapping[str, Lifetime], pair: Overlay) -> bool:
    """Return whether the input ends at the step at which the output begins, or at any later one where that is allowed."""
    if pair.output not in lives or pair.input not in lives:
        return False
    end, start = lives[pair.input].last, lives[pair.output].first
    return end >= start if pair.gradual else end == start


def joined(overlays: Iterable[Overlay]) -> dict[tuple[str, str], Overlay]:
    """Return what all overlays of each pair allow together; nothing where one wants the same byte and another an earlier one."""
    pairs: dict[tuple[str, str], Overlay] = {}
    for each in overlays:
        key = each.output, each.input
        before = pairs.get(key, each)
        exact, gradual = each.exact or before.exact, each.gradual or before.gradual
        pairs[key] = Overlay(*key, max(each.shift, before.shift), exact, gradual)
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


def _saved_at(buffers: Sequence[Lifetime], pairs: _Pairs, alignment: int) -> dict[int, int]:
    """Return the most bytes that overlays save at each step at which some could."""
    size = {life.name: aligned(life.size_bytes, alignment) for life in buffers}
    lives = {life.name: life for life in buffers}
    at: dict[int, list[Overlay]] = {}
    for pair in pairs.values():
        for step in range(lives[pair.output].first, lives[pair.input].last + 1):
            at.setdefault(step, []).append(pair)
    return {step: most_saved(found, size, alignment) for step, found in at.items()}


def _lower_bound(buffers: Sequence[Lifetime], saved: Mapping[int, int], alignment: int) -> int:
    """Return the largest sum over the steps of the aligned sizes alive, less the most that overlays could save there."""
    changes = dict.fromkeys(saved, 0)
    changes |= dict.fromkeys((step + 1 for step in saved), 0)
    for life in buffers:
        size = aligned(life.size_bytes, alignment)
        changes[life.first] = changes.get(life.first, 0) + size
        changes[life.last + 1] = changes.get(life.last + 1, 0) - size
    alive = peak = 0
    for step in sorted(changes):
        alive += changes[step]
        peak = max(peak, alive - saved.get(step, 0))
    return peak


_ORDERS = (
    lambda b: (-b.size_bytes, b.first),
    lambda b: (-b.size_bytes * (b.last - b.first + 1), b.first),
    lambda b: (b.first, -b.size_bytes),
    lambda b: (-b.last, -b.size_bytes),
    lambda b: (-(b.last - b.first), -b.size_bytes, b.first),
)
