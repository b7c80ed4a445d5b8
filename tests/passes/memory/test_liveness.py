"""First and last use."""

from __future__ import annotations

import pytest

from dsopt.passes.memory.liveness import Lifetime, Step, lifetimes

CHAIN = [Step(("x",), ("a",)), Step(("a", "w"), ("b",)), Step(("b", "a"), ("y",))]
SIZES = {"x": 4, "a": 8, "b": 12, "y": 16}


def test_a_buffer_lives_from_the_step_that_writes_it_to_the_last_that_reads_it() -> None:
    assert lifetimes(CHAIN, SIZES, before=["x"], after=["y"]) == (
        Lifetime("x", 4, 0, 0),
        Lifetime("a", 8, 0, 2),
        Lifetime("b", 12, 1, 2),
        Lifetime("y", 16, 2, 2),
    )


def test_an_input_that_nobody_reads_still_has_a_place() -> None:
    assert lifetimes([Step((), ("y",))], {"x": 4, "y": 4}, before=["x"], after=["y"])[0] == Lifetime("x", 4, 0, 0)


def test_an_output_written_early_is_kept_to_the_end() -> None:
    found = lifetimes(CHAIN, SIZES, before=["x"], after=["a", "y"])
    assert found[1] == Lifetime("a", 8, 0, 2)
    assert lifetimes(CHAIN, SIZES, before=["x"], after=["x"])[0].last == 2


def test_a_buffer_written_again_is_one_life() -> None:
    steps = [Step((), ("a",)), Step(("a",), ("b",)), Step(("b",), ("a",)), Step(("a",), ("c",))]
    assert lifetimes(steps, {"a": 4})[0] == Lifetime("a", 4, 0, 3)


def test_reading_what_nobody_wrote_is_an_error() -> None:
    with pytest.raises(ValueError, match="step 0 reads x, which nothing has written"):
        lifetimes(CHAIN, SIZES)


def test_a_life_of_no_bytes_or_no_time_is_refused() -> None:
    with pytest.raises(ValueError, match="no lifetime"):
        Lifetime("a", 0, 0, 1)
    with pytest.raises(ValueError, match="no lifetime"):
        Lifetime("a", 4, 2, 1)
