"""Results that lie over operands, judged byte by byte and by trying every place, with no code of the planner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsopt.passes.memory import overlay
from dsopt.passes.memory.arena import Plan, plan_arena
from dsopt.passes.memory.liveness import Lifetime
from dsopt.passes.memory.overlay import Overlay, joined, most_saved, plan_overlays, verify_overlays
from dsopt.passes.memory.overlay_search import Conflicts
from tests.passes.memory.test_packing import perfect

Problem = tuple[list[Lifetime], list[Overlay]]


@st.composite
def problems(draw: st.DrawFn, most: int = 8, units: int = 5) -> Problem:
    """Buffers over a few steps, and overlays between some that touch: exact or not, sometimes two for a pair, some that do not hold."""
    spans = draw(
        st.lists(st.tuples(st.integers(1, units), st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=most)
    )
    lives = [Lifetime(f"b{n}", size * 16 - n % 3, first, first + more) for n, (size, first, more) in enumerate(spans)]
    pairs = [(a.name, b.name) for a in lives for b in lives if a is not b and b.last == a.first]
    chosen = draw(st.lists(st.sampled_from(pairs), max_size=6)) if pairs else []
    overlays = [Overlay(o, i, draw(st.integers(0, 40)), draw(st.booleans())) for o, i in chosen]
    overlays = [replace(each, shift=0) if each.exact and draw(st.booleans()) else each for each in overlays]
    return lives, [*overlays, Overlay("b0", "nobody", 0)]


def may_share(problem: Problem, offsets: Mapping[str, int], a: Lifetime, b: Lifetime) -> bool:
    """Whether each thing said about one lying over the other holds, and something is said."""
    for output, input_ in ((a, b), (b, a)):
        said = [each for each in problem[1] if (each.output, each.input) == (output.name, input_.name)]
        if not said or output.first != input_.last:
            continue
        lead = offsets[input_.name] - offsets[output.name]
        # an exact overlay with a shift asks for the same byte and an earlier one: it never holds
        if all(lead >= each.shift and (lead == 0 or not each.exact) for each in said):
            return True
    return False


def is_wrong(problem: Problem, offsets: Mapping[str, int]) -> bool:
    """Mark every byte at every step, one by one; owners of one byte must be allowed to share it."""
    owners: dict[tuple[int, int], list[Lifetime]] = {}
    for life in problem[0]:
        start = offsets[life.name]
        for step in range(life.first, life.last + 1):
            for byte in range(start, start + life.size_bytes):
                there = owners.setdefault((step, byte), [])
                if any(not may_share(problem, offsets, life, other) for other in there):
                    return True
                there.append(life)
    return False


def smallest(problem: Problem) -> int:
    """The smallest arena, in bytes, by trying every aligned place of every buffer."""
    lives, _ = problem

    def conflict(a: Lifetime, b: Lifetime, at: Mapping[str, int]) -> bool:
        together = a.first <= b.last and b.first <= a.last
        share = at[a.name] < at[b.name] + b.size_bytes and at[b.name] < at[a.name] + a.size_bytes
        return together and share and not may_share(problem, at, a, b)

    def fits(arena: int, placed: Sequence[Lifetime], at: dict[str, int]) -> bool:
        if len(placed) == len(lives):
            return True
        life = lives[len(placed)]
        for start in range(0, arena - (-(-life.size_bytes // 16) * 16) + 1, 16):
            at[life.name] = start
            if all(not conflict(life, other, at) for other in placed) and fits(arena, [*placed, life], at):
                return True
        return False

    arena = 16
    while not fits(arena, [], {}):
        arena += 16
    return arena


@given(problems())
def test_only_what_may_share_a_byte_does(problem: Problem) -> None:
    plan = plan_overlays(*problem)
    assert not is_wrong(problem, plan.offsets)
    assert all(offset >= 0 and offset % 16 == 0 for offset in plan.offsets.values())
    assert all(plan.offsets[life.name] + life.size_bytes <= plan.arena_bytes for life in problem[0])


@given(problems(most=5, units=3))
def test_small_problems_get_the_smallest_arena(problem: Problem) -> None:
    plan, best = plan_overlays(*problem), smallest(problem)
    assert plan.arena_bytes == best
    assert plan.optimal
    assert plan_overlays(*problem, nodes=0).lower_bound_bytes <= best


@given(problems(most=5, units=3))
def test_the_search_alone_finds_the_smallest_arena(problem: Problem) -> None:
    def stacked(conflicts: Conflicts, _: int) -> tuple[list[int], int]:
        ends = list(accumulate(conflicts.size))
        return [end - size for end, size in zip(ends, conflicts.size, strict=True)], ends[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlay, "_hill_climb", stacked)
        patch.setattr(overlay, "plan_arena", lambda lives, alignment, nodes=None: plan_arena(lives, alignment))
        plan = plan_overlays(*problem)
    assert plan.optimal
    assert plan.arena_bytes == smallest(problem)


@given(problems(most=14))
def test_overlays_never_cost_anything(problem: Problem) -> None:
    assert plan_overlays(*problem).arena_bytes <= plan_arena(problem[0]).arena_bytes


@given(problems())
def test_the_same_problem_gets_the_same_plan(problem: Problem) -> None:
    assert plan_overlays(*problem) == plan_overlays(list(problem[0]), tuple(problem[1]))


@given(problems(), st.data())
def test_the_verifier_agrees_with_marking_every_byte(problem: Problem, data: st.DataObject) -> None:
    lives, overlays = problem
    offsets = {life.name: 16 * data.draw(st.integers(0, 8)) for life in lives}
    arena = max(offsets[life.name] + life.size_bytes for life in lives)
    touching = {life.name: life for life in lives}
    pairs = joined(
        o
        for o in overlays
        if o.output in touching and o.input in touching and touching[o.input].last == touching[o.output].first
    )
    try:
        verify_overlays(lives, pairs, Plan(offsets, arena, 0, False))
    except ValueError:
        assert is_wrong(problem, offsets)
    else:
        assert not is_wrong(problem, offsets)


@given(problems(most=12), st.data())
def test_an_order_with_one_buffer_moved_is_fitted_as_if_from_nothing(problem: Problem, data: st.DataObject) -> None:
    lives, overlays = problem
    known = {life.name: life for life in lives}
    touching = [o for o in overlays if {o.output, o.input} <= {*known} and known[o.input].last == known[o.output].first]
    conflicts = Conflicts(lives, joined(touching), {}, 16)
    order = data.draw(st.permutations(range(len(lives))))
    starts, top = conflicts.first_fit(order)
    here, there = (data.draw(st.integers(0, len(lives) - 1)) for _ in range(2))
    moved = list(order)
    moved.insert(there, moved.pop(here))
    fitted, end = conflicts.first_fit(moved)
    limit = data.draw(st.sampled_from([top, max(top, end), sum(conflicts.size)]))
    assert conflicts.refit(moved, starts, here, there, limit) == (fitted if end <= limit else None)


CHAIN = [Lifetime("x", 64, 0, 0), Lifetime("y", 64, 0, 1), Lifetime("z", 32, 1, 1)]


def test_a_result_lies_over_its_operand() -> None:
    plan = plan_overlays(CHAIN, [Overlay("y", "x", 16)])
    assert (plan.arena_bytes, plan.optimal) == (96, True)
    assert plan_overlays(CHAIN, []).arena_bytes == 128
    assert plan_overlays(CHAIN, [Overlay("y", "x", 0, exact=True)]).arena_bytes == 96


def test_two_overlays_of_one_pair_hold_both() -> None:
    plan = plan_overlays(CHAIN[:2], [Overlay("y", "x", 16), Overlay("y", "x", 32)])
    assert plan.offsets["x"] - plan.offsets["y"] == 32
    assert plan.arena_bytes == 96
    exact = plan_overlays(CHAIN[:2], [Overlay("y", "x", 0), Overlay("y", "x", 0, exact=True)])
    assert exact.offsets["x"] == exact.offsets["y"]
    assert plan_overlays(CHAIN[:2], [Overlay("y", "x", 0, exact=True), Overlay("y", "x", 16)]).arena_bytes == 128


def test_two_values_may_lie_over_each_other() -> None:
    lives = [Lifetime("a", 16, 0, 0), Lifetime("b", 31, 0, 0), Lifetime("c", 14, 0, 1)]
    plan = plan_overlays(lives, [Overlay("a", "b", 0), Overlay("b", "a", 0)])
    assert (plan.arena_bytes, plan.optimal) == (48, True)


def test_an_operand_that_lives_on_is_not_overwritten() -> None:
    lives = [Lifetime("x", 64, 0, 1), Lifetime("y", 64, 0, 1)]
    assert plan_overlays(lives, [Overlay("y", "x", 0)]).arena_bytes == 128


def test_two_results_share_the_bytes_of_one_operand_once() -> None:
    """The bytes that one result takes from the operand the other cannot have: the bound knows."""
    lives = [Lifetime("x", 640, 0, 0), Lifetime("wide", 1280, 0, 0), Lifetime("y", 128, 0, 1)]
    plan = plan_overlays(lives, [Overlay("y", "x", 0), Overlay("wide", "x", 640)])
    assert (plan.arena_bytes, plan.lower_bound_bytes) == (1408, 1408)


def test_what_overlays_save_is_bounded_by_both_sides() -> None:
    sizes = {"a": 64, "b": 64, "y": 96, "z": 32}
    assert most_saved([Overlay("y", "a", 0), Overlay("y", "b", 0)], sizes) == 96
    assert most_saved([Overlay("y", "a", 0, exact=True), Overlay("y", "b", 0, exact=True)], sizes) == 64
    assert most_saved([Overlay("y", "a", 0), Overlay("z", "a", 0)], sizes) == 64
    assert most_saved([Overlay("y", "a", 64), Overlay("z", "b", 100)], sizes) == 32
    assert most_saved([], sizes) == 0


def test_the_verifier_finds_a_wrong_plan() -> None:
    plan = plan_overlays(CHAIN, [Overlay("y", "x", 16)])
    pairs = joined([Overlay("y", "x", 16)])
    verify_overlays(CHAIN, pairs, plan)
    late = replace(plan, offsets={**plan.offsets, "x": plan.offsets["y"]})
    with pytest.raises(ValueError, match="y at 0 and x at 0 overlap"):
        verify_overlays(CHAIN, pairs, replace(late, offsets={**late.offsets, "y": 0, "x": 0}))
    with pytest.raises(ValueError, match="leaves the 64 bytes"):
        verify_overlays(CHAIN, pairs, replace(plan, arena_bytes=64))
    with pytest.raises(ValueError, match="does not place the same buffers: z"):
        verify_overlays(CHAIN, pairs, replace(plan, offsets={"x": 16, "y": 0}))


def test_a_useless_overlay_does_not_keep_the_arena_from_being_packed() -> None:
    """The exact search packs what first fit and hill climbing do not."""
    lives = [Lifetime(f"b{n}", size * 16, first, end - 1) for n, (first, end, size) in enumerate(perfect(100, 1))]
    lives += [Lifetime("before", 16, -2, -1), Lifetime("after", 16, -1, -1)]
    plan = plan_overlays(lives, [Overlay("after", "before", 0)])
    assert (plan.arena_bytes, plan.optimal) == (16_000, True)


def test_hundreds_of_layers_in_place_need_two_values() -> None:
    lives = [Lifetime(f"v{n}", 64 + 16 * (n % 5), n, n + 1) for n in range(300)]
    overlays = [Overlay(f"v{n + 1}", f"v{n}", 0) for n in range(299)]
    plan = plan_overlays(lives, overlays)
    assert (plan.arena_bytes, plan.optimal) == (128, True)
