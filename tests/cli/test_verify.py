"""dsopt verify."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import dsopt
from tests.cli.conftest import Run


def test_an_artifact_agrees_with_its_model(run: Run, run_json: Callable[..., Any], artifact: Path) -> None:
    assert "cpu agrees with the model on 1 run " in run("verify", artifact, "--against", "tests.cli.models:tiny").stdout
    found = run_json("verify", artifact, "--against", "tests.cli.models:tiny", "--bisect")
    assert found["agrees"]
    assert found["norm"] == "max|a-b| / max|b|"
    assert found["first_difference"] is None
    assert len(found["layers"]) == 3


def test_the_first_layer_that_differs_is_named(run: Run, run_json: Callable[..., Any], artifact: Path) -> None:
    text = run("verify", artifact, "--against", "tests.cli.models:other", "--bisect", code=1).stdout
    assert "DIFFERS" in text
    assert "The first layer that differs is %linear_1 aten.linear.default in second at models.py:" in text
    found = run_json("verify", artifact, "--against", "tests.cli.models:other", "--bisect", code=1)
    assert found["first_difference"]["layer"] == "second"
    assert not found["agrees"]


def test_inputs_come_from_a_file(run_json: Callable[..., Any], artifact: Path) -> None:
    np.savez("x.npz", x=np.ones((7, 2, 4), np.float32))
    found = run_json("verify", artifact, "--against", "tests.cli.models:tiny", "--inputs", "x.npz")
    assert found["runs"] == 7


def test_sizes_fixed_at_compile_time_are_fixed_again(run_json: Callable[..., Any]) -> None:
    program = dsopt.load_model("tests.cli.models:tiny", dims={"batch": 3})
    dsopt.compile(program, "cpu").save("fixed")
    assert run_json("verify", "fixed", "--against", "tests.cli.models:tiny")["agrees"]


def test_states_are_carried_on_both_sides(run_json: Callable[..., Any]) -> None:
    dsopt.compile(dsopt.load_model("tests.cli.models:counter"), "cpu").save("counter")
    found = run_json("verify", "counter", "--against", "tests.cli.models:counter", "--bisect")
    assert found["runs"] == 3
    assert found["agrees"]


def test_another_model_is_refused(run: Run, artifact: Path) -> None:
    text = run("verify", artifact, "--against", "tests.cli.models:counter", code=2).stderr
    assert "DS0451: the model is not the one that the artifact was built from" in text
    assert "x: [2, 3] in the model, [batch, 4] in the artifact" in text


def test_sizes_can_be_fixed_for_an_artifact_whose_sizes_vary(run_json: Callable[..., Any], artifact: Path) -> None:
    assert run_json("verify", artifact, "--against", "tests.cli.models:tiny", "--dim", "batch=5")["agrees"]


def test_a_comparison_of_nothing_is_not_called_agreement(run: Run, artifact: Path) -> None:
    np.savez("x.npz", x=np.full((2, 4), np.nan, np.float32))
    text = run("verify", artifact, "--against", "tests.cli.models:tiny", "--inputs", "x.npz").stdout
    assert "nothing compared: it holds only NaN or infinity" in text
    assert "cpu gave no number to compare with the model" in text
    assert "agrees" not in text
