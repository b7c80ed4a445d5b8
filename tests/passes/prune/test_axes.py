"""Slots and axis expressions keep their word: whatever channels go, every equation that was said holds."""

from __future__ import annotations

from math import prod

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dsopt.passes.prune.axes import Algebra, Expr, Factor, length
from dsopt.passes.prune.slots import FIXED, Pin, Slots

WHY = Pin(None, "a test says so")
COUNT = 8


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int32)


def assignment(slots: Slots, seed: int) -> list[bool]:
    """Return the truth of every slot for random truths of the channels."""
    chosen = np.random.default_rng(seed).random(slots.count) < 0.6
    return [all(leaf in slots.pins or bool(chosen[leaf]) for leaf in slots.leaves(slot)) for slot in range(slots.count)]


OPERATIONS = st.one_of(
    st.tuples(st.just("equal"), st.integers(0, COUNT), st.integers(0, COUNT)),
    st.tuples(st.just("both"), st.integers(1, COUNT), st.integers(1, COUNT), st.integers(1, COUNT)),
    st.tuples(st.just("pin"), st.integers(1, COUNT)),
)


@given(st.lists(OPERATIONS, max_size=14), st.integers(0, 100))
def test_every_fact_holds_for_every_choice_of_channels(facts: list[tuple[str, ...]], seed: int) -> None:
    slots = Slots()
    slots.new(COUNT)
    for kind, *numbers in facts:
        if kind == "equal":
            slots.unify(ids(numbers[0]), ids(numbers[1]), WHY)
        elif kind == "both":
            slots.define(*(ids(number) for number in numbers), WHY)
        else:
            slots.pin(ids(*numbers), WHY)
    truth = assignment(slots, seed)
    assert truth[FIXED]
    for kind, *numbers in facts:
        if kind == "equal":
            assert truth[numbers[0]] == truth[numbers[1]]
        elif kind == "both":
            assert truth[numbers[0]] == (truth[numbers[1]] and truth[numbers[2]])
        else:
            assert truth[numbers[0]]


def mask(expr: Expr, truth: list[bool]) -> np.ndarray:
    result = np.ones(1, bool)
    for factor in expr:
        row = [True] * factor.size if factor.slots is None else [truth[slot] for slot in factor.slots]
        result = np.outer(result, row).reshape(-1)
    return result


def tensor_mask(axes: tuple[Expr, ...], truth: list[bool]) -> np.ndarray:
    result = np.ones((), bool)
    for expr in axes:
        result = np.multiply.outer(result, mask(expr, truth))
    return result


@st.composite
def shapes(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Return two shapes of the same number of elements."""
    primes = draw(st.lists(st.sampled_from([2, 2, 3]), min_size=2, max_size=5))
    found = []
    for _ in range(2):
        order = draw(st.permutations(primes))
        cuts = sorted(draw(st.sets(st.integers(1, len(primes) - 1))))
        found.append([prod(order[a:b]) for a, b in zip([0, *cuts], [*cuts, len(primes)], strict=True)])
    return found[0], found[1]


@given(shapes(), st.lists(st.booleans(), min_size=5, max_size=5), st.integers(0, 100))
def test_a_reshape_moves_every_index_where_the_elements_go(
    both: tuple[list[int], list[int]], free: list[bool], seed: int
) -> None:
    before, after = both
    algebra = Algebra()
    axes = tuple(
        algebra.fresh(size) if is_free else (Factor(size),) for size, is_free in zip(before, free, strict=False)
    )
    result = algebra.regroup([factor for expr in axes for factor in expr], after, WHY)
    if result is None:
        return
    truth = assignment(algebra.slots, seed)
    assert [length(expr) for expr in result] == after
    assert np.array_equal(tensor_mask(axes, truth).reshape(after), tensor_mask(result, truth))


@given(st.lists(st.sampled_from([2, 4, 6]), min_size=1, max_size=3), st.data())
def test_joins_and_slices_move_every_index(sizes: list[int], data: st.DataObject) -> None:
    algebra = Algebra()
    parts = [algebra.fresh(size) for size in sizes]
    if data.draw(st.booleans()):
        parts[0] = (*parts[0], *algebra.fresh(data.draw(st.sampled_from([2, 3]))))
    joined = algebra.concat(parts, WHY)
    total = length(joined)
    low = data.draw(st.integers(0, total - 1))
    high = data.draw(st.integers(low + 1, total))
    sliced = algebra.take(joined, low, high, WHY)
    again = algebra.regroup(sliced, (2, (high - low) // 2), WHY) if (high - low) % 2 == 0 else None
    truth = assignment(algebra.slots, data.draw(st.integers(0, 50)))
    whole = np.concatenate([mask(part, truth) for part in parts])
    assert np.array_equal(mask(joined, truth), whole)
    assert np.array_equal(mask(sliced, truth), whole[low:high])
    if again is not None:
        assert np.array_equal(tensor_mask(again, truth).reshape(-1), whole[low:high])


@given(shapes(), st.integers(0, 100))
def test_dimensions_of_other_factors_can_be_held_equal(both: tuple[list[int], list[int]], seed: int) -> None:
    algebra = Algebra()
    left, right = (tuple(factor for size in sizes for factor in algebra.fresh(size)) for sizes in both)
    algebra.unify(left, right, WHY)
    truth = assignment(algebra.slots, seed)
    assert np.array_equal(mask(left, truth), mask(right, truth))


def test_taking_a_dimension_apart_twice_gives_the_same_rows_and_columns() -> None:
    algebra = Algebra()
    (whole,) = algebra.fresh(12)
    first, second = (algebra.split(whole, 3, WHY) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one.slots is not None
        assert other.slots is not None
        assert np.array_equal(algebra.slots.find(one.slots), algebra.slots.find(other.slots))
    assert len({algebra.slots.leaves(slot) for slot in whole.slots.tolist()}) == 12


def test_a_channel_that_would_contain_itself_takes_its_parts_along() -> None:
    slots = Slots()
    a, b = slots.new(2)
    slots.define(ids(a), ids(a), ids(b), WHY)
    assert slots.root(a) == slots.root(b)
