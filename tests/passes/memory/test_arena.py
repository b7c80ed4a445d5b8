"""The offset planner, judged by brute force and by checks that share no code with it."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsopt.passes.memory.arena import Plan, aligned, lower_bound, plan_arena, verify_plan
from dsopt.passes.memory.liveness import Lifetime


@st.composite
def lifetimes_of(draw: st.DrawFn, most: int = 24) -> list[Lifetime]:
    spans = draw(
        st.lists(st.tuples(st.integers(1, 200), st.integers(0, 12), st.integers(0, 6)), min_size=0, max_size=most)
    )
    return [Lifetime(f"b{n}", size, first, first + extra) for n, (size, first, extra) in enumerate(spans)]


def overlaps(buffers: list[Lifetime], offsets: dict[str, int]) -> bool:
    """Mark every byte at every step, one by one."""
    taken: set[tuple[int, int]] = set()
    for buffer in buffers:
        for step in range(buffer.first, buffer.last + 1):
            cells = {(step, byte) for byte in range(offsets[buffer.name], offsets[buffer.name] + buffer.size_bytes)}
            if cells & taken:
                return True
            taken |= cells
    return False


@given(lifetimes_of())
def test_no_two_live_buffers_share_a_byte(buffers: list[Lifetime]) -> None:
    plan = plan_arena(buffers)
    assert not overlaps(buffers, dict(plan.offsets))
    assert all(offset % 16 == 0 for offset in plan.offsets.values())
    assert all(plan.offsets[b.name] + b.size_bytes <= plan.arena_bytes for b in buffers)


@given(lifetimes_of())
def test_the_lower_bound_is_the_most_bytes_alive_at_one_step(buffers: list[Lifetime]) -> None:
    alive = [sum(aligned(b.size_bytes) for b in buffers if b.first <= step <= b.last) for step in range(20)]
    plan = plan_arena(buffers)
    assert lower_bound(buffers) == max(alive)
    assert plan.arena_bytes >= plan.lower_bound_bytes
    assert plan.optimal == (plan.arena_bytes == plan.lower_bound_bytes)


def smallest(buffers: list[Lifetime]) -> int:
    """The best over all orders of placing each buffer as low as it goes: some order gives an optimal packing."""
    best = 1 << 30
    for order in permutations(buffers):
        placed: list[tuple[int, Lifetime]] = []
        for buffer in order:
            starts = [0, *sorted(o + aligned(other.size_bytes) for o, other in placed if other.meets(buffer))]
            for start in starts:
                free = all(
                    start + buffer.size_bytes <= o or o + other.size_bytes <= start
                    for o, other in placed
                    if other.meets(buffer)
                )
                if free:
                    placed.append((start, buffer))
                    break
        best = min(best, max(o + aligned(b.size_bytes) for o, b in placed))
    return best


@given(lifetimes_of(most=6))
def test_small_instances_get_the_optimum(buffers: list[Lifetime]) -> None:
    if not buffers:
        assert plan_arena(buffers) == Plan({}, 0, 0, True)
        return
    plan = plan_arena(buffers)
    assert plan.optimal
    assert plan.arena_bytes == smallest(buffers)


@given(lifetimes_of(most=8), st.data())
def test_the_verifier_agrees_with_marking_every_byte(buffers: list[Lifetime], data: st.DataObject) -> None:
    offsets = {buffer.name: 16 * data.draw(st.integers(0, 20)) for buffer in buffers}
    arena = max((offsets[b.name] + b.size_bytes for b in buffers), default=0)
    wrong = overlaps(buffers, offsets)
    try:
        verify_plan(buffers, Plan(offsets, arena, 0, False))
    except ValueError:
        assert wrong
    else:
        assert not wrong


@given(lifetimes_of())
def test_the_same_buffers_get_the_same_plan(buffers: list[Lifetime]) -> None:
    assert plan_arena(buffers) == plan_arena(list(buffers))


def test_a_chain_needs_two_buffers_at_once() -> None:
    chain = [Lifetime(f"b{n}", 64, n, n + 1) for n in range(50)]
    plan = plan_arena(chain)
    assert (plan.arena_bytes, plan.optimal, plan.gap) == (128, True, 0.0)


def test_a_thousand_buffers_take_well_under_a_second() -> None:
    buffers = [Lifetime(f"b{n}", 16 * (n * 7919 % 97 + 1), n, n + n * 31 % 9) for n in range(1000)]
    plan = plan_arena(buffers)
    assert plan.gap < 0.35


@pytest.mark.parametrize(
    ("offsets", "arena", "complaint"),
    [
        ({"a": 0, "b": 0}, 64, "b at 0 and a at 0 overlap at step 1"),
        ({"a": 0, "b": 16}, 64, "overlap"),
        ({"a": 0, "b": 40}, 80, "not aligned"),
        ({"a": 0, "b": 48}, 64, "leaves the 64 bytes"),
        ({"a": -16, "b": 32}, 64, "not aligned, or leaves"),
        ({"a": 0}, 64, "does not place the same buffers: b"),
    ],
)
def test_the_verifier_finds_a_wrong_plan(offsets: dict[str, int], arena: int, complaint: str) -> None:
    buffers = [Lifetime("a", 32, 0, 1), Lifetime("b", 32, 1, 2)]
    with pytest.raises(ValueError, match=complaint):
        verify_plan(buffers, Plan(offsets, arena, 64, True))


def test_buffers_that_never_meet_may_share_bytes() -> None:
    buffers = [Lifetime("a", 32, 0, 1), Lifetime("b", 32, 2, 3)]
    assert plan_arena(buffers).offsets == {"a": 0, "b": 0}


def test_two_buffers_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="same name"):
        plan_arena([Lifetime("a", 1, 0, 0), Lifetime("a", 1, 1, 1)])
