"""The packer, judged by brute force, by checks that share no code with it, and its two engines by each other."""

from __future__ import annotations

import random
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsopt import native
from dsopt.passes.memory import packing, packing_native
from dsopt.passes.memory.packing import MAX_BYTES, Packing, pack
from dsopt.passes.memory.packing_native import native_engine
from dsopt.passes.memory.packing_twin import PythonEngine
from dsopt.passes.memory.sections import Part

Buffers = list[tuple[int, int, int]]
"""First step, end (exclusive) and bytes of each."""

PYTHON = PythonEngine()
ENGINES = [PYTHON, *([engine] if (engine := native_engine()) else [])]


def test_this_computer_has_both_engines() -> None:
    if not native.host_compilers():
        pytest.skip("no C compiler")
    assert [engine.name for engine in ENGINES] == ["python", "c"]


@st.composite
def buffers_of(draw: st.DrawFn, most: int = 20, bytes_: int = 9, steps: int = 12) -> Buffers:
    one = st.tuples(st.integers(0, steps), st.integers(1, steps // 2), st.integers(1, bytes_))
    return [(first, first + extra, size) for first, extra, size in draw(st.lists(one, max_size=most))]


def packed(buffers: Buffers, **options: object) -> Packing:
    columns = [list(column) for column in zip(*buffers, strict=True)] if buffers else [[], [], []]
    return pack(*columns, **options)  # type: ignore[arg-type]


def overlaps(buffers: Buffers, offsets: list[int]) -> bool:
    """Mark every byte at every step, one by one."""
    taken: set[tuple[int, int]] = set()
    for (first, end, size), offset in zip(buffers, offsets, strict=True):
        cells = {(step, byte) for step in range(first, end) for byte in range(offset, offset + size)}
        if cells & taken:
            return True
        taken |= cells
    return False


def smallest(buffers: Buffers) -> int:
    """The best over all orders of placing each buffer as low as it goes: some order gives a smallest packing."""
    best = 1 << 30
    for order in permutations(buffers):
        placed: list[tuple[int, tuple[int, int, int]]] = []
        for first, end, size in order:
            beside = [(at, at + other[2]) for at, other in placed if other[0] < end and first < other[1]]
            starts = [0, *sorted(stop for _, stop in beside)]
            free = (at for at in starts if all(at + size <= low or high <= at for low, high in beside))
            placed.append((next(free), (first, end, size)))
        best = min(best, max(at + each[2] for at, each in placed))
    return best


def perfect(count: int, seed: int, steps: int = 40, height: int = 1000) -> Buffers:
    """Cut a rectangle of time and bytes into buffers: they fit into `height` without a gap, and it takes a search to see how."""
    draw = random.Random(seed)
    parts = [(0, steps, 0, height)]
    while len(parts) < count:
        first, end, low, high = parts.pop(draw.randrange(len(parts)))
        if draw.random() < 0.5 and end - first > 1:
            middle = draw.randrange(first + 1, end)
            parts += [(first, middle, low, high), (middle, end, low, high)]
        elif high - low > 1:
            middle = draw.randrange(low + 1, high)
            parts += [(first, end, low, middle), (first, end, middle, high)]
        else:
            parts.append((first, end, low, high))
    return [(first, end, high - low) for first, end, low, high in parts]


@given(buffers_of())
def test_no_two_live_buffers_share_a_byte(buffers: Buffers) -> None:
    for engine in ENGINES:
        plan = packed(buffers, engine=engine, nodes=500)
        assert not overlaps(buffers, plan.offsets.tolist())
        assert plan.height == max((o + b[2] for o, b in zip(plan.offsets.tolist(), buffers, strict=True)), default=0)
        assert (plan.offsets >= 0).all()


@given(buffers_of())
def test_the_bound_is_at_least_what_is_alive_at_one_step(buffers: Buffers) -> None:
    alive = max((sum(size for first, end, size in buffers if first <= step < end) for step in range(20)), default=0)
    greedy, plan = packed(buffers, nodes=0), packed(buffers)
    assert greedy.bound == alive <= plan.bound <= plan.height <= greedy.height


@given(buffers_of(most=6, steps=5))
def test_small_problems_are_packed_as_small_as_brute_force_packs_them(buffers: Buffers) -> None:
    for engine in ENGINES:
        plan = packed(buffers, engine=engine)
        assert plan.optimal
        assert plan.height == (smallest(buffers) if buffers else 0)


def stacked(part: Part, *_: object) -> tuple[np.ndarray, int]:
    """The worst greedy packing."""
    return np.cumsum(part.size) - part.size, int(part.size.sum())


@given(buffers_of(most=6, bytes_=4, steps=4))
def test_the_search_alone_finds_the_smallest_packing(buffers: Buffers) -> None:
    """With few sizes and steps, so that many buffers are equal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "pack_greedily", stacked)
        for engine in ENGINES:
            plan = packed(buffers, engine=engine)
            assert plan.optimal
            assert plan.height == (smallest(buffers) if buffers else 0)


@given(buffers_of(most=14), st.integers(0, 60))
def test_both_engines_take_the_same_steps(buffers: Buffers, nodes: int) -> None:
    plans = [packed(buffers, engine=engine, nodes=nodes) for engine in ENGINES]
    for plan in plans:
        assert plan.offsets.tolist() == plans[0].offsets.tolist()
        assert (plan.height, plan.bound, plan.nodes) == (plans[0].height, plans[0].bound, plans[0].nodes)


@pytest.mark.parametrize("seed", range(6))
def test_both_engines_take_the_same_steps_through_hard_problems(seed: int) -> None:
    buffers = perfect(45, seed)
    plans = [packed(buffers, engine=engine, nodes=900) for engine in ENGINES]
    assert {(tuple(plan.offsets.tolist()), plan.bound, plan.nodes) for plan in plans} == {
        (tuple(plans[0].offsets.tolist()), plans[0].bound, plans[0].nodes)
    }


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 5, 7, 9])
def test_what_fits_without_a_gap_is_packed_without_a_gap(seed: int) -> None:
    buffers = perfect(100, seed)
    assert packed(buffers, nodes=0).height > 1000, "too easy: greedy finds it"
    plan = packed(buffers)
    assert (plan.height, plan.optimal) == (1000, True)
    assert not overlaps(buffers, plan.offsets.tolist())


def test_parts_that_share_no_time_are_packed_apart() -> None:
    buffers = [*perfect(30, 0), *((first + 100, end + 100, size) for first, end, size in perfect(30, 1))]
    assert packed(buffers, nodes=20_000).height == 1000


def test_a_capacity_that_suffices_is_enough() -> None:
    buffers = perfect(60, 3)
    greedy = packed(buffers, nodes=0).height
    assert packed(buffers, capacity=greedy).nodes == 0
    assert packed(buffers, capacity=greedy - 1).height < greedy
    assert packed(buffers, capacity=10).height == 1000, "one that cannot be met leaves the smallest packing"


def test_all_sizes_may_share_a_factor() -> None:
    buffers = perfect(40, 5)
    plain, scaled = packed(buffers), packed([(first, end, size * 4096) for first, end, size in buffers])
    assert scaled.offsets.tolist() == [offset * 4096 for offset in plain.offsets.tolist()]
    assert (scaled.height, scaled.nodes) == (plain.height * 4096, plain.nodes)


def test_sizes_up_to_the_limit_are_added_without_overflow() -> None:
    for engine in ENGINES:
        plan = packed([(0, 2, MAX_BYTES // 2 - 1), (1, 3, MAX_BYTES // 2 - 3), (2, 4, 1)], engine=engine)
        assert (plan.height, plan.optimal) == (MAX_BYTES - 4, True)


@pytest.mark.parametrize(
    ("buffers", "options", "complaint"),
    [
        ([(0, 0, 1)], {}, r"buffer 0: 1 bytes during steps 0 to 0 \(exclusive\) is no buffer"),
        ([(0, 1, 1), (0, 1, 0)], {}, "buffer 1: 0 bytes"),
        ([(3, 1, 1)], {}, "no buffer"),
        ([(0, 1, MAX_BYTES)], {}, "exceed"),
        ([(0, 1, MAX_BYTES - 1), (5, 6, 1)], {}, "exceed"),
        ([(0, 1, 1)], {"capacity": -1}, "capacity is -1"),
        ([(0, 1, 1)], {"nodes": -1}, "nodes is -1"),
    ],
)
def test_what_is_out_of_range_is_refused(buffers: Buffers, options: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        packed(buffers, **options)


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="not of the same buffers"):
        pack([0], [1, 2], [3])


@pytest.mark.parametrize("size", [[1.5], ["1"], [2**63], np.array([2**63], np.uint64), [2**70]])
def test_sizes_that_are_no_integers_of_64_bits_are_refused(size: list[int]) -> None:
    with pytest.raises(ValueError, match="integers of 64 bits"):
        pack([0], [1], size)


def test_steps_may_be_any_numbers() -> None:
    far = np.iinfo(np.int64)
    plan = pack([far.min, 0], [0, far.max], [5, 7])
    assert (plan.offsets.tolist(), plan.height) == ([0, 0], 7)


def test_without_a_compiler_the_twin_packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "host_compilers", lambda: ())
    native_engine.cache_clear()
    try:
        assert packed(perfect(20, 0)).engine == "python"
    finally:
        native_engine.cache_clear()


def test_a_library_that_cannot_be_loaded_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(packing_native, "native_library", lambda *_: broken)
    native_engine.cache_clear()
    try:
        assert native_engine() is None
    finally:
        native_engine.cache_clear()


def test_many_buffers_that_are_all_alive_together_are_stacked() -> None:
    count = 5_000
    plan = pack(np.zeros(count, int), np.full(count, 9), np.arange(1, count + 1))
    assert plan.height == count * (count + 1) // 2
    assert plan.optimal


def test_the_default_budget_is_the_packages_own_and_counts_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    buffers = perfect(60, 5)
    assert packed(buffers, engine=PYTHON).nodes > 100
    monkeypatch.setitem(packing._SEARCH_WORK, "python", 100_000)
    assert 0 < packed(buffers, engine=PYTHON).nodes < 1_000
    monkeypatch.setitem(packing._SEARCH_WORK, "python", 10_000)
    assert packed(buffers, engine=PYTHON).nodes == 0, "too few to get anywhere"
