"""Several memories, judged by trying every choice of regions with every packing."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsopt.passes.memory.arena import aligned
from dsopt.passes.memory.liveness import Lifetime
from dsopt.passes.memory.regions import CapacityError, Region, RegionPlan, plan_regions, verify_regions
from tests.passes.memory.test_packing import smallest

Problem = tuple[list[Lifetime], dict[str, int], list[Region]]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    spans = draw(
        st.lists(
            st.tuples(st.integers(1, 5), st.integers(0, 4), st.integers(0, 3), st.integers(0, 9)),
            min_size=1,
            max_size=5,
        )
    )
    lives = [Lifetime(f"b{n}", size * 16 - 1, first, first + more) for n, (size, first, more, _) in enumerate(spans)]
    accesses = {f"b{n}": count * 10 for n, (*_, count) in enumerate(spans)}
    regions = [Region("fast", 16 * draw(st.integers(0, 8)), 1), Region("slow", 16 * draw(st.integers(0, 14)), 4)]
    return lives, accesses, draw(st.permutations(regions))


def packed(lives: list[Lifetime]) -> int:
    return smallest([(b.first, b.last + 1, aligned(b.size_bytes)) for b in lives]) if lives else 0


def cheapest(problem: Problem) -> float | None:
    lives, accesses, regions = problem
    best: float | None = None
    for choice in product(regions, repeat=len(lives)):
        if all(
            packed([b for b, chosen in zip(lives, choice, strict=True) if chosen is r]) <= r.capacity_bytes
            for r in regions
        ):
            cost = sum(accesses[b.name] * chosen.cost_per_byte for b, chosen in zip(lives, choice, strict=True))
            best = cost if best is None else min(best, cost)
    return best


@given(problems())
def test_no_choice_of_regions_costs_less(problem: Problem) -> None:
    best = cheapest(problem)
    try:
        plan = plan_regions(*problem)
    except CapacityError as refusal:
        assert best is None
        lives, accesses, regions = problem
        grown = [replace(r, capacity_bytes=refusal.needed_bytes) if r.name == refusal.region else r for r in regions]
        assert cheapest((lives, accesses, grown)) is not None
        less = [replace(r, capacity_bytes=refusal.needed_bytes - 1) if r.name == refusal.region else r for r in regions]
        assert cheapest((lives, accesses, less)) is None
        return
    assert plan.optimal
    assert plan.cost == best
    assert plan_regions(*problem) == plan


FAST, SLOW = Region("dtcm", 64, 1.0), Region("sdram", 1024, 5.0)
BUFFERS = [
    Lifetime("hot", 48, 0, 3),
    Lifetime("large", 256, 0, 1),
    Lifetime("cold", 48, 1, 2),
    Lifetime("late", 64, 4, 5),
]
ACCESSES = {"hot": 480, "large": 512, "cold": 96, "late": 128}


def test_the_bytes_accessed_most_are_in_the_fastest_region() -> None:
    plan = plan_regions(BUFFERS, ACCESSES, [SLOW, FAST])
    assert plan.regions == {"hot": "dtcm", "large": "sdram", "cold": "sdram", "late": "dtcm"}
    assert plan.cost == 480 + 128 + 5 * (512 + 96)
    assert plan.optimal
    assert plan.plans["dtcm"].arena_bytes == 64


def test_what_does_not_fit_is_refused_with_the_capacity_that_would_do() -> None:
    with pytest.raises(CapacityError, match="sdram has 100 bytes and needs 304") as refused:
        plan_regions(BUFFERS, ACCESSES, [FAST, replace(SLOW, capacity_bytes=100)])
    assert (refused.value.region, refused.value.needed_bytes) == ("sdram", 304)
    plan = plan_regions(BUFFERS, ACCESSES, [FAST, replace(SLOW, capacity_bytes=304)])
    assert plan.plans["sdram"].arena_bytes == 304


def test_one_region_is_an_arena() -> None:
    with pytest.raises(CapacityError, match="needs 352"):
        plan_regions(BUFFERS, ACCESSES, [FAST])
    assert plan_regions(BUFFERS, ACCESSES, [SLOW]).plans["sdram"].arena_bytes == 352


def test_no_buffers_fit_anywhere() -> None:
    assert plan_regions([], {}, [FAST]).cost == 0


def test_hundreds_of_buffers_get_the_greedy_choice_at_least() -> None:
    lives = [Lifetime(f"v{n}", 64 + n * 37 % 200, n, n + 1 + n % 5) for n in range(300)]
    plan = plan_regions(lives, {life.name: life.size_bytes * (1 + n % 7) for n, life in enumerate(lives)}, [
        Region("fast", 512, 1.0), Region("slow", 4096, 3.0)
    ], nodes=1_000)  # fmt: skip
    inside = sum(region == "fast" for region in plan.regions.values())
    assert 80 < inside < 300


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"regions": {"a": "fast"}}, "does not place the same buffers: b"),
        ({"regions": {"a": "fast", "b": "other"}}, "regions that there are not: other"),
        ({"regions": {"a": "slow", "b": "fast"}}, "does not place the same buffers"),
    ],
)
def test_the_verifier_finds_a_wrong_plan(change: dict[str, dict[str, str]], complaint: str) -> None:
    lives = [Lifetime("a", 16, 0, 1), Lifetime("b", 16, 0, 1)]
    regions = [Region("fast", 16, 1), Region("slow", 16, 2)]
    plan = plan_regions(lives, {"a": 9, "b": 1}, regions)
    assert plan.regions == {"a": "fast", "b": "slow"}
    with pytest.raises(ValueError, match=complaint):
        verify_regions(lives, regions, replace(plan, **change))
    full = replace(plan.plans["fast"], arena_bytes=99)
    with pytest.raises(ValueError, match="fast has 16 bytes and the plan takes 99"):
        verify_regions(lives, regions, replace(plan, plans={**plan.plans, "fast": full}))


@pytest.mark.parametrize(
    ("buffers", "accesses", "regions", "complaint"),
    [
        ([BUFFERS[0], BUFFERS[0]], ACCESSES, [FAST], "same name"),
        ([BUFFERS[0]], {"hot": 1}, [FAST, FAST], "same name"),
        ([BUFFERS[0]], {"hot": 1}, [], "must be a region"),
        ([BUFFERS[0]], {"cold": 1}, [FAST], "not of the same names: cold, hot"),
    ],
)
def test_what_makes_no_sense_is_refused(
    buffers: list[Lifetime], accesses: dict[str, int], regions: list[Region], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        plan_regions(buffers, accesses, regions)


def test_a_plan_is_data() -> None:
    assert isinstance(plan_regions(BUFFERS, ACCESSES, [SLOW]), RegionPlan)
