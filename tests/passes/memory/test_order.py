"""The order of operators, judged by trying all orders and by counting what is alive step by step."""

from __future__ import annotations

import random
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsopt.passes.memory.arena import aligned, lower_bound
from dsopt.passes.memory.liveness import Step, lifetimes
from dsopt.passes.memory.order import find_order, predecessors
from dsopt.passes.memory.overlay import Overlay

Problem = tuple[list[Step], dict[str, int], list[str], list[str]]


@st.composite
def problems(draw: st.DrawFn, most: int = 7) -> Problem:
    """Operators that each write a buffer of their own, read some before it, and sometimes have scratch or overwrite a state."""
    count = draw(st.integers(1, most))
    sizes = {"x": draw(st.integers(1, 9)) * 16}
    steps = []
    for number in range(count):
        made = [f"b{n}" for n in range(number)]
        reads = draw(st.lists(st.sampled_from(["x", *made, "state"]), min_size=1, max_size=3, unique=True))
        writes = [f"b{number}"]
        sizes[f"b{number}"] = draw(st.integers(1, 9)) * 16
        if draw(st.integers(0, 3)) == 0:
            writes.append(f"s{number}")
            sizes[f"s{number}"] = draw(st.integers(1, 9)) * 16
        if draw(st.integers(0, 5)) == 0:
            writes.append("state")
        steps.append(Step(tuple(reads), tuple(writes)))
    used = {name for step in steps for name in step.reads}
    after = [name for name in (f"b{n}" for n in range(count)) if name not in used]
    return steps, sizes, ["x"], after


def respects(steps: list[Step], order: tuple[int, ...]) -> bool:
    """Whether every read sees the same writer as in the given order, and every buffer the same last writer."""

    def seen(numbers: tuple[int, ...]) -> tuple[dict[tuple[int, str], int], dict[str, int]]:
        writer: dict[str, int] = {}
        found = {}
        for number in numbers:
            for name in steps[number].reads:
                found[number, name] = writer.get(name, -1)
            for name in steps[number].writes:
                found[number, "over " + name] = writer.get(name, -1)
                writer[name] = number
        return found, writer

    return seen(order) == seen(tuple(range(len(steps))))


def peak(problem: Problem, order: tuple[int, ...]) -> int:
    steps, sizes, before, after = problem
    return lower_bound(lifetimes([steps[n] for n in order], sizes, before, after))


@given(problems())
def test_no_order_needs_fewer_bytes(problem: Problem) -> None:
    steps, sizes, before, after = problem
    found = find_order(steps, sizes, before, after)
    assert sorted(found.numbers) == list(range(len(steps)))
    assert respects(steps, found.numbers)
    allowed = [order for order in permutations(range(len(steps))) if respects(steps, order)]
    assert found.optimal
    if any("x" in step.reads for step in steps):  # else x is counted at whatever runs first
        assert peak(problem, found.numbers) == found.peak_bytes == min(peak(problem, order) for order in allowed)


@given(problems())
def test_the_given_order_stays_where_no_other_is_better(problem: Problem) -> None:
    steps, sizes, before, after = problem
    found = find_order(steps, sizes, before, after)
    again = find_order([steps[n] for n in found.numbers], sizes, before, after)
    assert again.numbers == tuple(range(len(steps)))
    assert again.peak_bytes == found.peak_bytes


@given(problems(most=12))
def test_the_beam_gives_an_order_that_is_allowed_and_no_worse(problem: Problem) -> None:
    steps, sizes, before, after = problem
    exact, found = find_order(steps, sizes, before, after), find_order(steps, sizes, before, after, states=0)
    assert respects(steps, found.numbers)
    assert exact.peak_bytes <= found.peak_bytes <= find_order(steps, sizes, before, after, states=0).peak_bytes
    if any("x" in step.reads for step in steps):
        assert found.peak_bytes == peak(problem, found.numbers) <= peak(problem, tuple(range(len(steps))))


def test_a_reader_of_a_state_runs_before_its_update() -> None:
    steps = [Step(("state", "x"), ("a",)), Step(("x",), ("state",)), Step(("a", "state"), ("y",))]
    assert predecessors(steps) == (frozenset(), frozenset({0}), frozenset({0, 1}))


def test_branches_run_one_after_the_other() -> None:
    """Two branches of a wide and a narrow value each, written breadth first."""
    steps = [
        Step(("x",), ("wide1",)),
        Step(("x",), ("wide2",)),
        Step(("wide1",), ("narrow1",)),
        Step(("wide2",), ("narrow2",)),
        Step(("narrow1", "narrow2"), ("y",)),
    ]
    sizes = {"x": 16, "wide1": 160, "wide2": 160, "narrow1": 16, "narrow2": 16, "y": 16}
    found = find_order(steps, sizes, ["x"], ["y"])
    assert found.numbers == (0, 2, 1, 3, 4)
    assert (found.peak_bytes, found.optimal) == (192, True)


def test_what_overlays_save_is_counted_where_the_operand_ends() -> None:
    steps = [Step(("x",), ("a",)), Step(("x",), ("b",)), Step(("a", "b"), ("y",))]
    sizes = {"x": 160, "a": 160, "b": 160, "y": 16}
    assert find_order(steps, sizes, ["x"], ["y"]).peak_bytes == 480
    found = find_order(steps, sizes, ["x"], ["y"], [Overlay("a", "x", 0), Overlay("b", "x", 32)])
    assert found.numbers == (1, 0, 2), "a saves 32 bytes more than b where x ends"
    assert found.peak_bytes == 336
    assert aligned(found.peak_bytes) == found.peak_bytes


def cell(branches: int, depth: int) -> Problem:
    """Branches that are woven together breadth first, each growing and shrinking, summed at the end."""
    steps, sizes = [], {"x": 64}
    for level in range(depth):
        for branch in range(branches):
            source = "x" if level == 0 else f"v{branch}_{level - 1}"
            beside = f"v{(branch + 1) % branches}_{level - 1}" if level and branch % 3 == 0 else source
            sizes[f"v{branch}_{level}"] = 16 * (1 + (branch * 7 + level * 5) % 11)
            steps.append(Step((source, beside), (f"v{branch}_{level}",)))
    sizes["y"] = 16
    steps.append(Step(tuple(f"v{branch}_{depth - 1}" for branch in range(branches)), ("y",)))
    return steps, sizes, ["x"], ["y"]


def random_cells(stages: int, nodes: int, seed: int) -> Problem:
    """Randomly wired cells one after the other, as in RandWire (Xie et al. 2019), in breadth-first order."""
    draw = random.Random(seed)
    steps, sizes, source = [], {"x": 64}, "x"
    for stage in range(stages):
        wires = [sorted(draw.sample(range(number), min(number, draw.choice((1, 2, 2, 3))))) for number in range(nodes)]
        depth = [0] * nodes
        for number, reads in enumerate(wires):
            depth[number] = 1 + max((depth[other] for other in reads), default=0)
        for number in sorted(range(nodes), key=lambda number: (depth[number], number)):
            name = f"s{stage}_{number}"
            sizes[name] = 64 * draw.choice((1, 1, 2))
            steps.append(Step(tuple(f"s{stage}_{other}" for other in wires[number]) or (source,), (name,)))
        ends = set(range(nodes)) - {other for reads in wires for other in reads}
        source = f"y{stage}"
        sizes[source] = 64
        steps.append(Step(tuple(f"s{stage}_{number}" for number in sorted(ends)), (source,)))
    return steps, sizes, ["x"], [source]


@pytest.mark.parametrize("problem", [cell(4, 8), cell(5, 10), *(random_cells(4, 31, seed) for seed in range(3))])
def test_cells_of_up_to_130_operators_are_ordered_exactly(problem: Problem) -> None:
    found = find_order(*problem)
    assert found.optimal
    assert respects(problem[0], found.numbers)
    assert found.peak_bytes < peak(problem, tuple(range(len(problem[0]))))
    assert found.peak_bytes == peak(problem, found.numbers)


def test_a_program_of_no_operators_has_an_order() -> None:
    assert find_order([], {}).numbers == ()
