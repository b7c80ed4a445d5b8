"""The accuracy gate: generated code judged on data, and layers raised until it passes, or a failure that says everything."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dsopt import Gate, api
from dsopt.accuracy.metrics import METRICS
from dsopt.errors import CheckError, UsageError
from dsopt.ir import Program
from dsopt.runtime import Session
from tests.accuracy.nets import layers, samples

FOUR_BITS = "...,quantize{weights=4}"
JUDGED = [
    ("accuracy", "cpu"),
    ("agreement", "cpu"),
    ("snr", "cpu"),
    pytest.param("accuracy", "mcu:cortex-m4", marks=pytest.mark.mcu),
]


def labelled(program: Program, count: int = 200) -> dict[str, Any]:
    """Return samples whose labels are the float model's own classes, so that it scores 100."""
    x = samples(count)
    return {"x": x, "labels": program.run(torch.from_numpy(x))[0].argmax(1).numpy()}


@pytest.mark.parametrize(
    ("metric", "target"),
    [("accuracy", "cpu"), ("agreement", "cpu"), ("snr", "cpu"), pytest.param("accuracy", "mcu:cortex-m4", marks=pytest.mark.mcu)],
)  # fmt: skip
def test_the_verdict_is_what_running_the_artifact_gives(metric: str, target: str) -> None:
    program = layers() if target == "cpu" else layers(batch=1)
    data = _data(program)
    gate = Gate(metric=metric)
    build = api.build(program, target, "...,quantize", data, gate=gate, calibration_samples=50, seed=3)
    verdict = build.verdict
    assert verdict is not None
    judged = np.sort(np.random.default_rng(3).permutation(200)[50:])
    with Session(build.artifact) as session:
        results = session.run_many([{"x": data["x"][n : n + 1]} for n in judged])
    outputs = np.concatenate([result["output"] for result in results])
    floats = layers().run(torch.from_numpy(data["x"][judged]))[0].numpy()
    reference = data["labels"][judged] if metric == "accuracy" else floats
    best = 200 if metric == "snr" else 100
    # ONNX Runtime adds floats in another order for one row than for 32; the snr of equal outputs is told exactly
    assert verdict.value == pytest.approx(METRICS[metric].function(outputs, reference), rel=1e-6)
    assert (verdict.float_value, verdict.samples, verdict.calibration_samples) == (best, 150, 50)
    assert verdict.drop == pytest.approx(best - verdict.value)
    assert verdict.is_held_out and verdict.passes and not verdict.kept
    assert build.artifact.manifest["accuracy"] == verdict.as_dict()
    assert build.artifact.manifest["calibration"]["samples"] == 50


def test_without_a_metric_the_data_says_what_to_judge_by() -> None:
    data = _data(layers())
    numbers = layers().run(torch.from_numpy(data["x"]))[0].numpy()
    for given, metric in (
        ({"x": data["x"]}, "agreement"), (data, "accuracy"), ({"x": data["x"], "labels": numbers}, "rmse"),
    ):  # fmt: skip
        verdict = api.build(layers(), "cpu", "...,quantize", given, gate=Gate()).verdict
        assert verdict is not None
        assert verdict.metric == metric


def test_a_metric_may_be_a_function() -> None:
    def share_of_threes(outputs: np.ndarray, labels: np.ndarray) -> float:
        return float(np.mean(outputs.argmax(1)[labels == 3] == 3))

    build = api.build(layers(), "cpu", "...,quantize", _data(layers()), gate=Gate(0.2, share_of_threes))
    assert build.verdict is not None
    assert (build.verdict.metric, build.verdict.passes) == ("share_of_threes", True)


def test_the_one_layer_that_suffers_is_raised_and_no_other() -> None:
    """All weights of `second` but one column are rounded to nothing at 4 bits; the other layers lose a few points."""
    data = _data(layers(3.0))
    with pytest.raises(CheckError):
        api.build(layers(3.0), "cpu", FOUR_BITS, data, gate=Gate(15, "accuracy", fallback="none"))
    build = api.build(layers(3.0), "cpu", FOUR_BITS, data, gate=Gate(15, "accuracy"))
    verdict = build.verdict
    assert verdict is not None
    assert dict(verdict.kept) == {"linear_1": "8-bit weights"}
    assert verdict.layers[0].node == "linear_1"
    assert verdict.drop <= 15
    assert "quantize{weights=4,int8=linear_1}" in [each["name"] for each in build.artifact.manifest["passes"]]
    with Session(build.artifact) as session:
        assert session.run_flat({"x": data["x"][:3]})["output"].shape == (3, 10)


def test_float_is_reached_only_where_it_is_allowed() -> None:
    """Weights of 40 beside 0.2 are too much for 8 bits as well, and no wider results help."""
    data = _data(layers(40.0))
    with pytest.raises(CheckError, match="the least drop of the quantised program was"):
        api.build(layers(40.0), "cpu", "...,quantize", data, gate=Gate(15, "accuracy"))
    verdict = api.build(layers(40.0), "cpu", "...,quantize", data, gate=Gate(15, "accuracy", fallback="float")).verdict
    assert verdict is not None
    assert dict(verdict.kept) == {"linear_1": "float"}


def test_a_miss_says_which_layers_are_to_blame_in_order() -> None:
    with pytest.raises(CheckError) as caught:
        api.build(layers(3.0), "cpu", FOUR_BITS, _data(layers(3.0)), gate=Gate(1, fallback="none"))
    error = caught.value
    assert (error.code, error.exit_code) == ("DS0342", 1)
    rows = [line for line in error.where.splitlines() if " dB " in line]
    assert [row.split(" in ")[-1] for row in rows][0] == "second"
    assert len(rows) == 3
    numbers = [float(row.split()[0]) for row in rows]
    assert numbers == sorted(numbers)
    assert "fallback none" in error.why


def test_judging_on_the_calibration_samples_is_said() -> None:
    verdict = api.build(layers(), "cpu", "...,quantize", _data(layers(), 20), gate=Gate()).verdict
    assert verdict is not None
    assert not verdict.is_held_out
    assert "the ones it was calibrated on" in verdict.summary()
    assert verdict.as_dict()["max_drop"] is None


def test_a_float_build_is_judged_too() -> None:
    verdict = api.build(layers(), "cpu", None, _data(layers()), gate=Gate(0, "accuracy")).verdict
    assert verdict is not None
    assert (verdict.value, verdict.drop) == (100, 0)


@pytest.mark.parametrize(
    ("gate", "data", "message"),
    [
        ({"metric": "f1"}, {"x": samples(150)}, "DS0341: unknown metric 'f1'"),
        ({"metric": "accuracy"}, {"x": samples(150)}, "DS0343: the metric 'accuracy' needs labels"),
        ({}, None, "DS0345: there is no data to judge on"),
        ({"metric": "accuracy"}, {"x": samples(150), "labels": np.zeros((150, 10), np.int64)}, "DS0347: labels of shape"),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_is_refused(gate: dict[str, Any], data: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        api.build(layers(), "cpu", "...,quantize", data, gate=Gate(0.5, **gate))


def test_a_gate_that_means_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match=r"DS0344: unknown fallback 'int32'[\s\S]*known: none, int16, float"):
        Gate(0.5, fallback="int32")
    with pytest.raises(UsageError, match="DS0344: the largest drop is no number"):
        Gate(float("nan"))
