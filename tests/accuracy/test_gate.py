"""The accuracy gate: generated code judged on data, and layers raised until it passes, or a failure that says everything."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dsopt import Gate, PassContext, PassManager, api, parse_pipeline
from dsopt.accuracy.metrics import METRICS
from dsopt.errors import CheckError, UsageError
from dsopt.ir import Program
from dsopt.runtime import Session
from tests.accuracy.nets import layers, samples, two

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


@pytest.mark.parametrize(("metric", "target"), JUDGED)
def test_the_verdict_is_what_running_the_artifact_gives(metric: str, target: str) -> None:
    data = labelled(layers(), 70)
    program = layers() if target == "cpu" else layers(batch=1)
    build = api.build(program, target, "...,quantize", data, gate=Gate(190.0, metric), calibration_samples=50, seed=3)
    verdict = build.verdict
    assert verdict is not None
    judged = np.sort(np.random.default_rng(3).permutation(70)[50:])
    with Session(build.artifact) as session:
        results = session.run_many([{"x": data["x"][n : n + 1]} for n in judged])
    outputs = np.concatenate([result["output"] for result in results])
    floats = layers().run(torch.from_numpy(data["x"][judged]))[0].numpy()
    reference = data["labels"][judged] if metric == "accuracy" else floats
    assert verdict.value == pytest.approx(METRICS[metric].function(outputs, reference))
    assert (verdict.samples, verdict.calibration_samples) == (20, 50)
    assert verdict.drop == pytest.approx(verdict.float_value - verdict.value)
    assert verdict.is_held_out
    assert verdict.passes
    assert not verdict.kept
    assert build.artifact.manifest["accuracy"] == verdict.as_dict()


def test_a_miss_without_fallback_fails_with_the_layers_by_sensitivity() -> None:
    program = layers(2.0)
    with pytest.raises(CheckError) as caught:
        api.build(program, "cpu", FOUR_BITS, labelled(program), gate=Gate(2.0, fallback="none"), calibration_samples=50)
    error = caught.value
    assert error.code == "DS0342"
    rows = [line for line in str(error.where).splitlines() if " dB " in line]
    assert [row.split(" in ")[-1] for row in rows][:1] == ["second"]
    assert len(rows) == 3
    assert "fallback none" in str(error.why)


def test_layers_are_raised_in_order_of_sensitivity_until_the_code_passes() -> None:
    program = layers(2.0)
    data = labelled(program)
    build = api.build(program, "cpu", FOUR_BITS, data, gate=Gate(25.0), calibration_samples=50)
    verdict = build.verdict
    assert verdict is not None
    assert verdict.passes
    order = [each.node for each in verdict.layers]
    assert set(verdict.kept) == set(order[: len(verdict.kept)])
    assert 1 <= len(verdict.kept) < len(order)
    first = next(each for each in verdict.layers)
    assert first.layer == "second"


def test_what_stays_too_inaccurate_fails_however_far_layers_are_raised() -> None:
    program = layers(2.0)
    with pytest.raises(CheckError, match="raised as far as fallback 'int16' allows") as caught:
        api.build(program, "cpu", FOUR_BITS, labelled(program), gate=Gate(-1.0), calibration_samples=50)
    assert "the least drop of the quantised program was" in str(caught.value.why)


def test_float_is_the_last_resort() -> None:
    program = layers(2.0)
    data = labelled(program)
    build = api.build(program, "cpu", FOUR_BITS, data, gate=Gate(0.0, fallback="float"), calibration_samples=50)
    assert build.verdict is not None
    assert build.verdict.value == 100
    assert build.verdict.kept


def test_a_pipeline_that_does_not_quantise_has_nothing_to_raise() -> None:
    program = layers()
    data = labelled(program)
    data["labels"] = (data["labels"] + 1) % 10
    build = api.build(program, "cpu", None, data, gate=Gate(0.0))
    assert build.verdict is not None
    assert build.verdict.drop == 0
    with pytest.raises(CheckError, match="no quantize pass is among the passes"):
        api.build(program, "cpu", None, data, gate=Gate(-1.0))


@pytest.mark.parametrize(
    ("gate", "code"),
    [
        (lambda: Gate(float("nan")), "DS0344"),
        (lambda: Gate(1.0, fallback="int2"), "DS0344"),
        (lambda: api.build(layers(), "cpu", gate=Gate(1.0)), "DS0345"),
        (lambda: api.build(layers(), "cpu", None, labelled(layers()), gate=Gate(1.0, "f1")), "DS0341"),
        (lambda: api.build(layers(), "cpu", None, {"x": samples(9)}, gate=Gate(1.0, "accuracy")), "DS0343"),
    ],
)
def test_what_cannot_be_judged_is_refused(gate: Any, code: str) -> None:
    with pytest.raises(UsageError) as caught:
        gate()
    assert caught.value.code == code


def test_without_a_metric_the_data_says_what_to_judge_by() -> None:
    data = labelled(layers())
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

    build = api.build(layers(), "cpu", "...,quantize", labelled(layers()), gate=Gate(0.2, share_of_threes))
    assert build.verdict is not None
    assert (build.verdict.metric, build.verdict.passes) == ("share_of_threes", True)


def test_the_one_layer_that_suffers_is_raised_and_no_other() -> None:
    """All weights of `second` but one column are rounded to nothing at 4 bits; the other layers lose a few points."""
    data = labelled(layers(3.0))
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
    data = labelled(layers(40.0))
    with pytest.raises(CheckError, match="the least drop of the quantised program was"):
        api.build(layers(40.0), "cpu", "...,quantize", data, gate=Gate(15, "accuracy"))
    verdict = api.build(layers(40.0), "cpu", "...,quantize", data, gate=Gate(15, "accuracy", fallback="float")).verdict
    assert verdict is not None
    assert dict(verdict.kept) == {"linear_1": "float"}


def test_judging_on_the_calibration_samples_is_said() -> None:
    verdict = api.build(layers(), "cpu", "...,quantize", labelled(layers(), 20), gate=Gate()).verdict
    assert verdict is not None
    assert not verdict.is_held_out
    assert "the ones it was calibrated on" in verdict.summary()
    assert verdict.as_dict()["max_drop"] is None


# ---- what was quantised before ----


def quantised_before(outlier: float = 2.0) -> Program:
    """Return a program whose 4-bit weights have lost much of what the float one could do."""
    program = layers(outlier)
    passes = parse_pipeline("quantize{weights=4}")
    return PassManager(passes).run(program, PassContext(calibration=[{"x": torch.from_numpy(samples(50))}]))[0]


def test_a_drop_of_a_program_that_was_quantised_before_is_told_from_its_float_model() -> None:
    program, data = quantised_before(), labelled(layers(2.0))
    with pytest.raises(CheckError) as caught:
        api.build(program, "cpu", None, data, gate=Gate(2.0, reference=layers(2.0)))
    assert caught.value.code == "DS0342"
    build = api.build(program, "cpu", None, data, gate=Gate(90.0, reference=layers(2.0)))
    assert build.verdict is not None
    assert build.verdict.float_value == 100
    judged = np.sort(np.random.default_rng(0).permutation(200)[100:])
    got = program.run(torch.from_numpy(data["x"][judged]))[0].argmax(1).numpy()
    assert build.verdict.drop == pytest.approx(100 - 100 * (got == data["labels"][judged]).mean(), abs=1.01)
    assert build.verdict.drop > 5


def test_a_quantised_program_is_no_reference_unless_it_is_given_as_one() -> None:
    program, data = quantised_before(), labelled(layers(2.0))
    with pytest.raises(UsageError) as caught:
        api.build(program, "cpu", None, data, gate=Gate(2.0))
    assert caught.value.code == "DS0348"
    build = api.build(program, "cpu", None, data, gate=Gate(2.0, reference=program))
    assert build.verdict is not None
    assert "in the quantised program on 100 samples" in build.verdict.summary()
    assert api.build(program, "cpu", None, data, gate=Gate()).verdict == replace(build.verdict, max_drop=math.inf)


def test_a_reference_takes_what_the_program_takes() -> None:
    data = labelled(layers(batch=1))
    assert api.build(layers(batch=1), "cpu", None, data, gate=Gate(1.0, reference=layers())).verdict is not None
    for reference in (layers(batch=1), two()):
        with pytest.raises(UsageError) as caught:
            api.build(layers(), "cpu", None, data, gate=Gate(1.0, reference=reference))
        assert caught.value.code == "DS0349"
    assert "it takes table (float32 [4, 3]) for nothing" in str(caught.value)
