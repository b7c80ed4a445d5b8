"""Interleaved timing: percentiles by rank, ratios by pairs, and bounds that hold the median."""

from __future__ import annotations

import random
import time

import pytest

from dsopt.measure.timing import MIN_ROUNDS, WARM_UP_ROUNDS, interleave, paired_ratio, percentile, timing


@pytest.mark.parametrize(("ratio", "value"), [(0.5, 50), (0.9, 90), (0.99, 99), (1.0, 100), (0.0, 1)])
def test_a_percentile_is_the_nearest_rank(ratio: float, value: float) -> None:
    assert percentile(list(range(1, 101)), ratio) == value


def test_a_timing_holds_three_percentiles() -> None:
    found = timing("x", [3.0, 1.0, 2.0])
    assert (found.runs, found.p50_ms, found.p90_ms, found.p99_ms) == (3, 2.0, 3.0, 3.0)


def test_every_call_is_made_once_a_round_and_the_pause_before_each() -> None:
    made: list[str] = []
    calls = {name: (lambda name=name: made.append(name)) for name in ("a", "b")}
    taken = interleave(calls, seconds=0, between=lambda: made.append("-"))
    rounds = "".join(made).split("-")[1:]
    assert len(rounds) == MIN_ROUNDS + WARM_UP_ROUNDS
    assert {"".join(sorted(each)) for each in rounds} == {"ab"}
    assert {len(values) for values in taken.values()} == {MIN_ROUNDS}
    assert len(set(rounds)) == 2  # both orders happen


def test_a_call_that_takes_twice_as_long_has_a_ratio_of_about_two() -> None:
    taken = interleave({"slow": lambda: time.sleep(0.004), "fast": lambda: time.sleep(0.002)}, seconds=0)
    ratio = paired_ratio("fast", taken["slow"], taken["fast"])
    assert ratio.low <= ratio.ratio <= ratio.high
    assert 1.5 < ratio.ratio < 2.5


def test_the_bounds_hold_the_true_median_in_95_of_100_cases() -> None:
    generator = random.Random(0)
    held = 0
    for _ in range(400):
        theirs = [generator.lognormvariate(0, 0.3) for _ in range(60)]
        ours = [value * 1.1 * generator.lognormvariate(0, 0.2) for value in theirs]
        ratio = paired_ratio("peer", ours, theirs)
        held += ratio.low <= 1.1 <= ratio.high
    assert held >= 0.93 * 400
