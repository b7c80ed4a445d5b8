"""The quantisation benchmark measures what it says: accuracy of generated code, agreement layer by layer, and time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import dsopt
from benchmarks.quantize import __main__ as quantize
from benchmarks.quantize import subjects
from benchmarks.quantize.layers import compare_layers
from benchmarks.quantize.outputs import build, disagreements, exact_outputs, program_outputs
from benchmarks.quantize.rows import calibrated, rows_of
from dsopt import parse_pipeline
from dsopt.train import QatResult, qat
from models.digits import DigitsNet, spec
from models.seeded import example, seeded

LOWERING = parse_pipeline("lower-integer,fold-constants,remove-dead-code")

KEYS = {
    "model", "method", "bits", "data", "metric", "accuracy", "float_accuracy", "drop", "drop_unit", "spread", "seeds",
    "max_lsb_difference", "simulation_lsb_difference", "onnxruntime_lsb_difference", "layers", "onnxruntime_layers",
    "oracle_mismatches", "argmax_disagreements", "exact_disagreements", "onnxruntime_disagreements", "samples", "cpu_seconds",
    "training_cpu_seconds",
}  # fmt: skip


def tiny_digits(assets: Path | None, quick: bool) -> subjects.Subject:
    """Untrained digits, random images, and a training of two batches."""
    x, y = example(132, 1, 8, 8), torch.arange(132) % 10

    def train(program: dsopt.Program, bits: int, seed: int) -> QatResult:
        batches = [(x[start : start + 16], y[start : start + 16]) for start in (0, 16)]
        return qat(program, batches, torch.nn.functional.cross_entropy, epochs=1, quantize=f"weights={bits}", seed=seed)

    program = dsopt.capture(spec(seeded(DigitsNet)))
    return subjects.Subject(program, x[:100], {"held out": (x[100:], y[100:])}, train=train)


@pytest.mark.mcu
def test_a_run_gives_a_row_for_each_method_and_width(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(subjects.SUBJECTS, "digits", tiny_digits)
    quantize.main(["--models", "digits", "--bits", "4", "--seeds", "2", "--no-times", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["name"]) == (1, "quantize")
    found = [(row["method"], row["bits"], row["seeds"]) for row in document["rows"]]
    assert found == [("ptq", 4, 1), ("ptq+", 4, 1), ("qat", 4, 2)]
    for row in document["rows"]:
        assert set(row) == KEYS
        assert row["samples"] == 32
        assert (
            row["max_lsb_difference"] == max(row["simulation_lsb_difference"], row["onnxruntime_lsb_difference"]) <= 1
        )
        assert row["layers"] == row["onnxruntime_layers"] == 4
        assert row["oracle_mismatches"] == 0
        assert row["cpu_seconds"] > 0
        assert row["drop"] == pytest.approx(row["float_accuracy"] - row["accuracy"])
        assert (row["training_cpu_seconds"] > 0) == (row["method"] == "qat")


def test_where_there_is_nothing_to_train_on_a_note_says_so() -> None:
    x = example(100, 1, 8, 8)
    program = dsopt.capture(spec(seeded(DigitsNet)))
    subject = subjects.Subject(program, x, {}, untrained="no training data")
    (row,) = rows_of("digits", subject, ["qat"], [8], 1)
    assert row == {"model": "digits", "method": "qat", "bits": 8, "note": "no training data"}


def test_a_layer_that_differs_is_found_where_it_is_and_not_after_it() -> None:
    x = example(100, 1, 8, 8)
    rounded, _ = calibrated(dsopt.capture(spec(seeded(DigitsNet))), x, 8)
    artifact = dsopt.compile(rounded, "cpu", passes=())
    model = onnx.load_from_string(bytes(artifact.files["model.onnx"]))
    layers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    zeros = {each.name: each for each in model.graph.initializer}
    moved = onnx.numpy_helper.to_array(zeros[layers[1].input[2]]) + 3
    model.graph.initializer.append(onnx.numpy_helper.from_array(moved, "moved"))
    layers[1].input[2] = "moved"
    wrong = replace(artifact, files={**artifact.files, "model.onnx": model.SerializeToString()})
    right, found = (compare_layers(rounded, LOWERING, each, (x[:4],)) for each in (artifact, wrong))
    second = list(right.onnxruntime)[1]
    # a rectified layer: zero stays where it was, and all that is above moves by three steps of 255
    assert found.onnxruntime[second] == pytest.approx(3, abs=1)
    assert {**found.onnxruntime, second: 0} == {**right.onnxruntime, second: 0}
    assert found.simulation == right.simulation


@pytest.mark.mcu
def test_a_convolution_that_is_fused_into_a_sum_is_compared_too() -> None:
    class Residual(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (torch.nn.Conv2d(2, 2, 3, padding=1) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x)
            return y + self.second(y)

    x = example(8, 2, 5, 5)
    network = dsopt.ModelSpec(seeded(Residual), (x,), dynamic={"x": {0: "batch"}})
    built = build(calibrated(dsopt.capture(network), x, 8)[0], x)
    assert len(built.layers.simulation) == 4  # the input, two convolutions and the sum
    assert built.mismatches == 0


def test_exact_sums_are_those_of_float64() -> None:
    """1 is less than half a step of float32 beside 2^25: a sum in float32 loses every one that comes after the large number."""
    weight = torch.ones(1, 64)
    weight[0, 0], weight[0, -1] = 2.0**25, -(2.0**25)

    class Sums(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = torch.nn.functional.linear(x, weight)
            products = x @ weight.reshape(64, 1)
            image = torch.nn.functional.conv2d(x.reshape(-1, 64, 1, 1), weight.reshape(1, 64, 1, 1)).reshape(-1, 1)
            return torch.cat([rows, products, image], -1)

    x = torch.ones(3, 64)
    program = dsopt.capture(dsopt.ModelSpec(Sums(), (x,)))
    assert exact_outputs(program, x).tolist() == [[62.0] * 3] * 3
    assert exact_outputs(program, x).dtype == np.float32
    assert (program_outputs(program, x) != 62).any()


def test_answers_differ_by_class_or_by_more_than_a_step() -> None:
    left, right = np.array([[1.0, 2.0], [3.0, 0.0]]), np.array([[1.0, 1.5], [0.0, 1.0]])
    assert disagreements(left, right, 0.5) == 1
    assert disagreements(np.array([[1.0], [2.0], [3.0]]), np.array([[1.5], [3.0], [3.0]]), 0.5) == 1


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--models", "resnet99"], "--models has no 'resnet99'; known: kws, ic, digits"),
        (["--methods", "magic"], "--methods has no 'magic'; known: ptq, ptq+, qat"),
        (["--bits", "3"], "--bits has no '3'; known: 8, 4"),
        (["--seeds", "0"], "--seeds is 0 and must be at least 1"),
        (["--models", "kws,digits"], "kws need --assets DIR"),
    ],
)
def test_wrong_options_are_answered(arguments: list[str], answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        quantize.main(arguments)
    assert answer in capsys.readouterr().err
