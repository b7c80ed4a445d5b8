"""dsopt bench."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.cli.conftest import Run

TINY = "tests.cli.models:tiny"


def test_percentiles_are_shown(run: Run, run_json: Callable[..., Any], artifact: Path) -> None:
    found = run_json("bench", artifact, "--seconds", "0", "--dim", "batch=4", "--threads", "1")
    (timing,) = found["timings"]
    assert timing["runs"] == 20
    assert 0 < timing["p50_ms"] <= timing["p90_ms"] <= timing["p99_ms"]
    assert found["shapes"] == {"x": [4, 4]}
    assert "p99 ms" in run("bench", artifact, "--seconds", "0").stdout


def test_peers_run_in_turns_and_ratios_have_bounds(run: Run, run_json: Callable[..., Any], artifact: Path) -> None:
    found = run_json("bench", artifact, "--seconds", "0", "--against", "torch", "--model", TINY)
    assert [each["name"] for each in found["timings"]] == ["dsopt", "torch"]
    (ratio,) = found["ratios"]
    assert ratio["low"] <= ratio["ratio"] <= ratio["high"]
    assert "dsopt / torch" in run("bench", artifact, "--seconds", "0", "--against", "torch", "--model", TINY).stdout


def test_inputs_come_from_a_file(run_json: Callable[..., Any], artifact: Path) -> None:
    np.savez("x.npz", x=np.ones((7, 4), np.float32))
    assert run_json("bench", artifact, "--seconds", "0", "--inputs", "x.npz")["shapes"] == {"x": [7, 4]}


def test_bad_requests_are_sentences(run: Run, artifact: Path) -> None:
    assert "DS0455" in run("bench", artifact, "--against", "torch", code=2).stderr
    assert "unknown peer 'abacus'" in run("bench", artifact, "--against", "abacus", "--model", TINY, code=2).stderr
    assert "DS0801" in run("bench", "nothing", code=2).stderr


def test_sizes_that_vary_are_those_of_the_model_s_example(
    run: Run, run_json: Callable[..., Any], artifact: Path
) -> None:
    assert run_json("bench", artifact, "--seconds", "0", "--model", TINY)["shapes"] == {"x": [2, 4]}
    assert run_json("bench", artifact, "--seconds", "0", "--model", TINY, "--dim", "batch=3")["shapes"] == {"x": [3, 4]}
    assert run_json("bench", artifact, "--seconds", "0")["shapes"] == {"x": [1, 4]}


def test_layers_are_shown_with_their_operators(run: Run, artifact: Path) -> None:
    text = run("bench", artifact, "--seconds", "0", "--layers").stdout
    assert "operator" in text
    assert "aten.linear.default" in text
