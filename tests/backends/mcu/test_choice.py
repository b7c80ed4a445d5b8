"""The choice of an option for each layer, against all combinations and against what it promises."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsopt.backends.mcu.choice import Limits, Option, Rest, choose

Layers = list[list[Option]]
SIZES = {"a": 40, "b": 90, "c": 10, "d": 300}
"""Parts that layers share."""


def options(draw: st.DrawFn, layer: int, number: int) -> Option:
    shared = draw(st.sets(st.sampled_from(sorted(SIZES))))
    own = {f"own {layer} {number}": draw(st.integers(0, 200))}
    return Option(draw(st.integers(1, 1000)), own | {part: SIZES[part] for part in shared})


@st.composite
def programs(draw: st.DrawFn, most_layers: int = 4) -> tuple[Layers, Rest, Limits]:
    """Draw layers, what a program takes beside them, and limits of which some can be met."""
    count = draw(st.integers(1, most_layers))
    layers = [[options(draw, layer, n) for n in range(draw(st.integers(1, 3)))] for layer in range(count)]
    parts = {part: SIZES[part] for part in draw(st.sets(st.sampled_from(["c", "d"])))}
    limit = st.none() | st.integers(0, 2000)
    return layers, Rest(draw(st.integers(0, 500)), draw(st.integers(0, 500)), parts), Limits(draw(limit), draw(limit))


def taken(layers: Layers, rest: Rest, numbers: Sequence[int]) -> tuple[int, int]:
    """Return instructions and bytes: each part once."""
    chosen = [layer[number] for layer, number in zip(layers, numbers, strict=True)]
    sizes = {part: size for parts in (rest.parts, *(option.parts for option in chosen)) for part, size in parts.items()}
    return rest.instructions + sum(option.instructions for option in chosen), rest.flash_bytes + sum(sizes.values())


def over(need: int, limit: int | None) -> float:
    return 0.0 if limit is None else max(0, need - limit) / max(limit, 1)


def merit(program: tuple[Layers, Rest, Limits], numbers: Sequence[int], optimize: str) -> tuple[float, ...]:
    """Return what is to be least, as the documentation says it."""
    layers, rest, limits = program
    (i, f), (usual_i, usual_f) = taken(layers, rest, numbers), taken(layers, rest, [0] * len(layers))
    beyond = over(f, limits.flash_bytes) + over(i, limits.instructions)
    return {
        "speed": (beyond, i, f),
        "flash": (beyond, over(i, usual_i * 3 // 2), f, i),
        "balanced": (beyond, over(f, usual_f) + over(i, usual_i), i * f, f),
    }[optimize]


def combinations(layers: Layers) -> Iterator[tuple[int, ...]]:
    return product(*(range(len(layer)) for layer in layers))


OBJECTIVES = pytest.mark.parametrize("optimize", ["speed", "balanced", "flash"])


@OBJECTIVES
@given(program=programs())
@settings(deadline=None)
def test_no_combination_is_better(optimize: str, program: tuple[Layers, Rest, Limits]) -> None:
    layers, rest, limits = program
    found = choose(layers, optimize, limits, rest)
    best = min(merit(program, numbers, optimize) for numbers in combinations(layers))
    assert merit(program, found, optimize) == pytest.approx(best)


@OBJECTIVES
@given(program=programs(most_layers=6))
@settings(deadline=None, max_examples=50)
def test_where_not_all_are_looked_at_no_change_of_two_layers_is_better(
    optimize: str, program: tuple[Layers, Rest, Limits]
) -> None:
    layers, rest, limits = program
    found = choose(layers, optimize, limits, rest, most=0)
    here = merit(program, found, optimize)
    near = [c for c in combinations(layers) if sum(a != b for a, b in zip(c, found, strict=True)) <= 2]
    usual = (0,) * len(layers)
    assert all(here <= merit(program, other, optimize) or here == pytest.approx(merit(program, other, optimize))
               for other in (*near, usual))  # fmt: skip


def test_layers_take_up_code_together_that_pays_for_none_of_them_alone() -> None:
    own = Option(100, {"own": 0})
    layers = [
        [Option(100, {f"loops {layer}": 70}), Option(100, {"shared loops": 100})] for layer in range(20)
    ]  # of 20 layers, two million combinations: more than are all looked at
    found = choose([*layers, [own]], "flash", Limits(), Rest())
    assert found == (1,) * 20 + (0,)


def test_of_equal_options_the_first_is_taken() -> None:
    same = [Option(5, {"a": 5}), Option(5, {"a": 5})]
    for optimize in ("speed", "balanced", "ram", "flash"):
        assert choose([same, same], optimize, Limits(), Rest()) == (0, 0)


def test_what_is_made_for_balance_is_neither_slower_nor_larger_than_the_usual_code() -> None:
    layer = [
        Option(100, {"usual": 100}),
        Option(99, {"large": 150}),
        Option(150, {"small": 20}),
        Option(100, {"less": 99}),
    ]
    assert choose([layer], "balanced", Limits(), Rest()) == (3,)
    assert choose([layer], "speed", Limits(), Rest()) == (1,)
    assert choose([layer], "flash", Limits(), Rest()) == (2,)


def test_limits_come_first() -> None:
    layer = [Option(100, {"usual": 100}), Option(60, {"large": 150}), Option(150, {"small": 20})]
    assert choose([layer], "balanced", Limits(flash_bytes=50), Rest()) == (2,)
    assert choose([layer], "flash", Limits(instructions=70), Rest()) == (1,)
    assert choose([layer], "speed", Limits(flash_bytes=10), Rest()) == (2,)
