"""Ratios, bounds, errors, turns and output of the benchmarks, against cases worked out by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.harness import interleave, paired_ratio, parser, relative_error, report, table


def test_a_ratio_of_paired_rounds_ignores_what_slows_both() -> None:
    noise = np.random.default_rng(1).uniform(1, 5, 50)
    ratio = paired_ratio([list(0.8 * noise)], [list(noise)])
    assert ratio.median == pytest.approx(0.8)
    assert ratio.upper95 == pytest.approx(0.8)


def test_the_bound_covers_the_true_ratio_about_nineteen_times_in_twenty() -> None:
    rng = np.random.default_rng(2)
    covered = sum(
        paired_ratio([list(np.exp(rng.normal(0, 0.1, 41)))], [[1.0] * 41], seed=trial).upper95 >= 1.0
        for trial in range(60)
    )
    # 60 trials at 0.95: 57 expected, standard deviation 1.7.
    assert covered >= 52


def test_openings_that_differ_widen_the_bound() -> None:
    rounds = [[1.0] * 20] * 4
    alike = paired_ratio([[0.95] * 20, [0.95] * 20, [0.95] * 20, [0.95] * 20], rounds)
    lucky = paired_ratio([[0.95] * 20, [0.95] * 20, [0.95] * 20, [1.10] * 20], rounds)
    assert alike.upper95 == pytest.approx(0.95)
    assert lucky.median == pytest.approx(0.95)
    assert lucky.upper95 == pytest.approx(1.10, abs=0.08)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.5, 2.0), min_size=3, max_size=30))
def test_the_bound_is_never_below_the_least_ratio_nor_above_the_largest(ratios: list[float]) -> None:
    ratio = paired_ratio([ratios], [[1.0] * len(ratios)])
    assert min(ratios) <= ratio.median <= max(ratios)
    assert min(ratios) <= ratio.upper95 <= max(ratios)


def test_one_slow_round_does_not_move_the_ratio() -> None:
    assert paired_ratio([[1.0] * 20 + [100.0]], [[1.0] * 21]).upper95 == 1.0


def test_candidates_take_turns_at_going_first() -> None:
    order: list[str] = []

    def candidate(name: str) -> None:
        order.append(name)
        # Long enough that one call is one sample.
        math.fsum(range(200_000))

    seconds = interleave({"a": lambda: candidate("a"), "b": lambda: candidate("b")}, budget_seconds=0.0, least_rounds=4)
    assert {name: len(values) for name, values in seconds.items()} == {"a": 4, "b": 4}
    assert all(value > 0 for values in seconds.values() for value in values)
    firsts = "".join(name for name, before in zip(order[1:], order, strict=False) if name != before)
    assert "ab" in firsts
    assert "ba" in firsts


def test_the_error_is_relative_to_the_largest_reference_of_its_own_tensor() -> None:
    large = (np.array([100.0, -200.0]), np.array([100.0, -201.0]))
    small = (np.array([[0.5]]), np.array([[0.4]]))
    assert relative_error([large[0]], [large[1]]) == pytest.approx(1 / 201)
    assert relative_error([large[0], small[0]], [large[1], small[1]]) == pytest.approx(0.25)
    assert relative_error([np.zeros(0)], [np.zeros(0)]) == 0.0


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        ([np.zeros(2)], "an output is"),
        ([np.array([np.nan])], "not finite"),
        ([], "argument 2 is longer"),
    ],
)
def test_outputs_that_cannot_be_compared_are_refused(ours: list[np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        relative_error(ours, [np.ones(1)])


def test_json_is_one_document_with_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    report("example", [{"model": "kws", "seconds": 0.25}], as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["name"]) == (1, "example")
    assert document["rows"] == [{"model": "kws", "seconds": 0.25}]
    assert document["machine"]["logical_processors"] >= 1


def test_rows_of_different_kinds_become_different_tables(capsys: pytest.CaptureFixture[str]) -> None:
    report("example", [{"model": "kws", "bytes": 12345}, {"x": None, "seconds": 0.123456}], as_json=False)
    text = capsys.readouterr().out
    assert "model   bytes\nkws    12,345" in text
    assert "x  seconds\n    0.1235" in text


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert table([("a", "bb"), ("ccc", "d")]) == "a    bb\nccc   d"


def test_every_benchmark_takes_the_same_options() -> None:
    options = parser("what it measures").parse_args(["--quick", "--json", "--assets", "somewhere"])
    assert (options.quick, options.json, str(options.assets)) == (True, True, "somewhere")
