"""The prune benchmark measures models, lists failures with their causes, and its judge tells right from wrong."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from benchmarks.prune import __main__ as prune
from benchmarks.prune import candidates
from benchmarks.prune.masked import kept_indices, masked_difference, randomized
from dsopt.frontend.export import export_module
from dsopt.ir import example_inputs
from dsopt.passes.base import PassManager, parse_pipeline


def test_a_row_a_model_and_failures_apart(capsys: pytest.CaptureFixture[str]) -> None:
    prune.main(["--models", "gru,nothing", "--ratio", "0.4", "--json"])
    document = json.loads(capsys.readouterr().out)
    (row,) = document["rows"]
    assert row["model"] == "gru"
    assert abs(row["parameters_removed"] - 0.4) < 0.01
    assert 0.3 < row["multiply_adds_removed"] < 0.5
    assert row["masked_difference"] < 1e-10
    assert row["seconds"] > 0
    assert document["failures"] == [{"model": "nothing", "cause": "models/ has no nothing"}]


def test_a_ratio_out_of_reach_is_a_failure_of_that_model(capsys: pytest.CaptureFixture[str]) -> None:
    prune.main(["--models", "gru", "--options", "keep=recurrent", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["rows"] == []
    assert "prune: UsageError: DS0370: ratio=0.5 cannot be reached: at most 0.0 %" in document["failures"][0]["cause"]


def test_small_models_of_a_family_are_told_by_their_names() -> None:
    assert candidates.smallest(["net_large", "net_tiny", "net_small"]) == "net_tiny"
    assert candidates.smallest(["b", "a"]) == "a"


def test_the_judge_finds_a_weight_that_was_cut_in_the_wrong_place() -> None:
    model = randomized(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))
    program = export_module(model, (torch.randn(2, 6).double(),))
    result, _ = PassManager(parse_pipeline("prune{ratio=0.5}")).run(program)
    inputs = example_inputs(program, seed=1)
    assert masked_difference(program, result, inputs) < 1e-15
    wrong = result.clone()
    kept = kept_indices(program.weights["0.weight"], result.weights["0.weight"])[0]
    others = torch.tensor([index for index in range(8) if index not in kept.tolist()])[: len(kept)]
    wrong._weights = {**wrong.weights, "2.weight": program.weights["2.weight"][:, others]}
    assert masked_difference(program, wrong, inputs) > 1e-3
    wrong._weights = {**wrong.weights, "2.weight": result.weights["2.weight"] + 1}
    with pytest.raises(ValueError, match="no part of the original"):
        masked_difference(program, wrong, inputs)
