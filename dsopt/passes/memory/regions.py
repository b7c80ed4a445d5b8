"""Several memories, such as tightly coupled, internal and external RAM: the region of each buffer for its whole life, and its offset.

Every byte read or written costs what its region asks. Branch and bound over the buffers, most accesses per byte first, each into the
fastest region that has room at every step of its life; what is assigned is packed in each region. The first leaf is what a greedy
planner gives; the search goes on until nothing can be cheaper or its nodes are spent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dsopt.passes.memory.arena import ALIGNMENT, Plan, aligned, plan_arena, verify_plan
from dsopt.passes.memory.liveness import Lifetime
from dsopt.passes.memory.packing import pack

MAX_NODES = 20_000
_MOST_LEAVES = 200
_LEAF_NODES = 5_000
"""Nodes of the packer for each region of a leaf."""


@dataclass(frozen=True)
class Region:
    """A memory: its bytes, and what an access to one of them costs, in any unit that all regions share (cycles, picojoules)."""

    name: str
    capacity_bytes: int
    cost_per_byte: float


@dataclass(frozen=True)
class RegionPlan:
    """The region of each buffer and the plan of each region. `optimal`: no other choice costs less."""

    regions: Mapping[str, str]
    plans: Mapping[str, Plan]
    cost: float
    optimal: bool


class CapacityError(ValueError):
    """No choice of regions was found that fits. `needed_bytes`: the smallest capacity of `region` found to suffice, others as they are."""

    def __init__(self, region: Region, needed_bytes: int) -> None:
        super().__init__(
            f"the buffers do not fit: {region.name} has {region.capacity_bytes:,} bytes and needs {needed_bytes:,}, "
            "the other regions being as large as they are"
        )
        self.region = region.name
        self.needed_bytes = needed_bytes


def plan_regions(
    buffers: Sequence[Lifetime],
    accessed_bytes: Mapping[str, int],
    regions: Sequence[Region],
    alignment: int = ALIGNMENT,
    *,
    nodes: int = MAX_NODES,
) -> RegionPlan:
    """Choose a region for each buffer, so that all fit and accesses cost least, and pack each region. Deterministic.

    accessed_bytes: read and written in one run, by buffer. nodes: assignments to look at. Raises CapacityError if the buffers do not
    fit, ValueError for regions or buffers of equal names and for unknown buffers.
    """
    _check(buffers, accessed_bytes, regions)
    found = _search(buffers, accessed_bytes, regions, alignment, nodes)
    if found is None:
        largest = max(regions, key=lambda region: region.capacity_bytes)
        raise CapacityError(largest, _smallest(buffers, accessed_bytes, regions, largest, alignment, nodes))
    verify_regions(buffers, regions, found, alignment)
    return found


def verify_regions(
    buffers: Sequence[Lifetime], regions: Sequence[Region], plan: RegionPlan, alignment: int = ALIGNMENT
) -> None:
    """Check a plan without trusting who made it: each buffer in one region, each region within its capacity, no overlap.

    Raises ValueError naming what is wrong.
    """
    wrong = sorted({buffer.name for buffer in buffers} ^ set(plan.regions))
    if wrong:
        raise ValueError(f"the plan does not place the same buffers: {', '.join(wrong)}")
    unknown = sorted(set(plan.regions.values()) - {region.name for region in regions})
    if unknown:
        raise ValueError(f"the plan uses regions that there are not: {', '.join(unknown)}")
    for region in regions:
        inside = [buffer for buffer in buffers if plan.regions[buffer.name] == region.name]
        if plan.plans[region.name].arena_bytes > region.capacity_bytes:
            raise ValueError(
                f"{region.name} has {region.capacity_bytes:,} bytes and the plan takes {plan.plans[region.name].arena_bytes:,}"
            )
        verify_plan(inside, plan.plans[region.name], alignment)


def _check(buffers: Sequence[Lifetime], accessed_bytes: Mapping[str, int], regions: Sequence[Region]) -> None:
    names = {buffer.name for buffer in buffers}
    if len(names) != len(buffers) or len({region.name for region in regions}) != len(regions):
        raise ValueError("two buffers or two regions have the same name")
    if not regions or any(region.capacity_bytes < 0 for region in regions):
        raise ValueError("there must be a region, and no capacity below zero")
    missing = sorted(names ^ set(accessed_bytes))
    if missing:
        raise ValueError(f"buffers and accesses are not of the same names: {', '.join(missing)}")


def _smallest(
    buffers: Sequence[Lifetime],
    accessed_bytes: Mapping[str, int],
    regions: Sequence[Region],
    grown: Region,
    alignment: int,
    nodes: int,
) -> int:
    """Return the smallest capacity of one region with which a plan is found, by halving."""
    low, high = grown.capacity_bytes, plan_arena(buffers, alignment).arena_bytes
    while high - low > alignment:
        middle = aligned((low + high) // 2, alignment)
        larger = [replace(region, capacity_bytes=middle) if region is grown else region for region in regions]
        found = _search(buffers, accessed_bytes, larger, alignment, nodes) if middle < high else None
        if found is not None:
            high = max(found.plans[grown.name].arena_bytes, low + 1)
        else:
            low = middle
    return high


def _search(
    buffers: Sequence[Lifetime],
    accessed_bytes: Mapping[str, int],
    regions: Sequence[Region],
    alignment: int,
    nodes: int,
) -> RegionPlan | None:
    """Return the cheapest plan found; None if none fits. The densest first is best for cost, the largest first to fit at all."""
    assignment = _Assignment(buffers, accessed_bytes, regions, alignment)
    density = [accessed_bytes[each.name] / each.size_bytes for each in buffers]
    volume = [each.size_bytes * (each.last - each.first + 1) for each in buffers]
    best: RegionPlan | None = None
    for key in (density, volume):
        order = sorted(range(len(buffers)), key=lambda n: (-key[n], -buffers[n].size_bytes, n))
        found, is_exhausted = assignment.search(order, nodes, best.cost if best else None)
        best = found or best
        if is_exhausted:
            return replace(best, optimal=True) if best else None
    return best


class _Assignment:
    """The search for regions."""

    def __init__(
        self,
        buffers: Sequence[Lifetime],
        accessed_bytes: Mapping[str, int],
        regions: Sequence[Region],
        alignment: int,
    ) -> None:
        self._buffers, self._regions, self._alignment = buffers, regions, alignment
        self._fastest_first = sorted(range(len(regions)), key=lambda n: (regions[n].cost_per_byte, n))
        self._cost = [[accessed_bytes[each.name] * region.cost_per_byte for region in regions] for each in buffers]
        self._size = [aligned(each.size_bytes, alignment) for each in buffers]
        steps = np.unique([each.first for each in buffers])
        self._from = np.searchsorted(steps, [each.first for each in buffers])
        self._to = np.searchsorted(steps, [each.last for each in buffers], "right")
        self._live = np.zeros((len(regions), len(steps)), np.int64)

    def search(self, order: Sequence[int], nodes: int, below: float | None) -> tuple[RegionPlan | None, bool]:
        """Return the cheapest plan that costs less than `below`, and whether none is cheaper still."""
        self._live[:] = 0
        rest = [0.0]
        for number in reversed(order):
            rest.append(rest[-1] + min(self._cost[number]))
        rest.reverse()
        best: RegionPlan | None = None
        chosen: list[int] = []
        costs = [0.0]
        tries: list[Iterator[int]] = [iter(self._fastest_first)]
        leaves = 0
        is_exact = True
        while tries:
            depth = len(chosen)
            region = next(tries[-1], None) if depth < len(order) else None
            if depth == len(order):
                leaves += 1
                plan, is_proven = self._pack(dict(zip(order, chosen, strict=True)), costs[-1])
                is_exact &= plan is not None or is_proven
                if plan is not None:
                    best, below = plan, plan.cost
            if region is None:
                tries.pop()
                if chosen:
                    self._put(order[len(chosen) - 1], chosen.pop(), -1)
                    costs.pop()
                continue
            cost = costs[-1] + self._cost[order[depth]][region]
            if (below is not None and cost + rest[depth + 1] >= below) or not self._has_room(order[depth], region):
                continue
            if nodes == 0 or leaves == _MOST_LEAVES:
                return best, False
            nodes -= 1
            self._put(order[depth], region, 1)
            chosen.append(region)
            costs.append(cost)
            tries.append(iter(self._fastest_first))
        return best, is_exact

    def _put(self, number: int, region: int, sign: int) -> None:
        self._live[region, self._from[number] : self._to[number]] += sign * self._size[number]

    def _has_room(self, number: int, region: int) -> bool:
        alive = int(self._live[region, self._from[number] : self._to[number]].max())
        return alive + self._size[number] <= self._regions[region].capacity_bytes

    def _pack(self, chosen: Mapping[int, int], cost: float) -> tuple[RegionPlan | None, bool]:
        """Return the plan if every region holds what is chosen for it, and whether it is proven where one does not."""
        plans = {}
        for region in range(len(self._regions)):
            inside = [number for number in range(len(self._buffers)) if chosen[number] == region]
            capacity = self._regions[region].capacity_bytes
            lives = [self._buffers[number] for number in inside]
            packing = pack(
                [life.first for life in lives],
                [life.last + 1 for life in lives],
                [self._size[number] for number in inside],
                capacity=capacity,
                nodes=_LEAF_NODES,
            )
            if packing.height > capacity:
                return None, packing.bound > capacity
            offsets = {life.name: offset for life, offset in zip(lives, packing.offsets.tolist(), strict=True)}
            plans[self._regions[region].name] = Plan(offsets, packing.height, packing.bound, packing.optimal)
        names = {buffer.name: self._regions[chosen[n]].name for n, buffer in enumerate(self._buffers)}
        return RegionPlan(names, plans, cost, False), True
