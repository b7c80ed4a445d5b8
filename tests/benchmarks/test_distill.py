"""The distillation benchmark runs through on a few made-up sentences, goes on where it stopped, and reports what was kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import results_store
from benchmarks.distill import __main__ as benchmark
from benchmarks.distill import results
from benchmarks.distill.nets import BagOfWords, Scale, encoder, grown
from benchmarks.distill.stages import Recipe, Run

SCALE = Scale(8, 2, 2, 2, 8, 2, "prune{ratio=0.1,scope=local}", samples=64)
RECIPE = Recipe(1, 1, 1, 1, 1, learning_rate=1e-2)
STAGES = [
    "teacher", "student", "pruned", "int8", "final", "student without teacher", "1 layer", "bag of words", "int8 alone", "pruned alone",
]  # fmt: skip


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write sentences whose label is one of their words, make everything tiny, and keep results elsewhere."""
    monkeypatch.setattr(benchmark, "QUICK", SCALE)
    monkeypatch.setattr(benchmark, "QUICK_RECIPE", RECIPE)
    monkeypatch.setattr(benchmark, "_SECONDS", {True: 0.02, False: 0.02})
    monkeypatch.setattr(results_store, "FOLDER", tmp_path / "results")
    folder = tmp_path / "data" / "sst2"
    folder.mkdir(parents=True)
    words = ("bad", "good")
    lines = [f"a {words[number % 2]} film {number % 7}\t{number % 2}" for number in range(128)]
    (folder / "train.tsv").write_text("\n".join(lines) + "\n")
    (folder / "dev.tsv").write_text("\n".join(lines[:33]) + "\n")
    return tmp_path


def _run(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    benchmark.main([str(argument) for argument in (*arguments, "--json")])
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_a_run_goes_on_from_what_it_kept_and_is_reported(assets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = _run(capsys, "--quick", "--assets", assets, "--work", assets / "work")["rows"]
    assert [row["stage"] for row in rows] == STAGES
    by_stage = {row["stage"]: row for row in rows}
    for name in ("int8", "final"):
        row = by_stage[name]
        assert row["size_ratio"] == pytest.approx(by_stage["teacher"]["size_bytes"] / row["size_bytes"])
        assert row["accuracy_drop"] == pytest.approx(by_stage["teacher"]["accuracy"] - row["accuracy"])
        assert row["latency_ratio"] > 0
    assert not results_store.FOLDER.exists()  # a quick run is no claim
    times = {path: path.stat().st_mtime_ns for path in (assets / "work").iterdir()}
    assert len(times) == len(STAGES) + 1  # what the teacher is grown from
    again = Run(None, SCALE, RECIPE, 0, "cpu", assets / "work").programs()  # type: ignore[arg-type]  # needs no data any more
    assert list(again) == STAGES
    assert {path: path.stat().st_mtime_ns for path in (assets / "work").iterdir()} == times

    kept = results.keep(
        results.Kept().with_seed(0, {row["stage"]: row["accuracy"] for row in rows}), rows, SCALE, RECIPE
    )
    assert results.kept_run(SCALE, RECIPE) == kept
    assert results.kept_run(SCALE, Recipe(2, 1, 1, 1, 1)) == results.Kept()  # another recipe is not added to
    kept = kept.with_seed(1, {row["stage"]: row["accuracy"] - 2 for row in rows})
    results.keep(kept, rows, SCALE, RECIPE)
    assert results_store.newest("distill")["seeds"] == [0, 1]
    document = _run(capsys, "--report", "--quick")
    assert [row["stage"] for row in document["rows"]] == STAGES
    for row, old in zip(document["rows"], rows, strict=True):
        assert row["accuracy"] == pytest.approx(old["accuracy"] - 1)
        assert row["seeds"] == 2
        # the artifacts are of the same form, up to the digits of scales
        assert row["size_bytes"] == pytest.approx(old["size_bytes"], rel=0.02)
    assert document["runs"][0]["trained on"] == document["machine"]["processor"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--report"], "no run"), ([], "needs --assets DIR"), (["--seeds", "0"], "must be at least 1")],
)
def test_what_cannot_run_says_so(
    arguments: list[str], message: str, assets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(arguments)
    assert message in capsys.readouterr().err


def test_a_teacher_that_is_grown_computes_what_it_is_grown_from_does() -> None:
    scale, ids = Scale(16, 2, 4, 2, 8, 2, ""), torch.randint(3, 99, (5, 8))
    small = encoder(scale, 2, 0)
    module = small.module()
    weights = small.module().state_dict()
    inner = [name for name in weights if name.startswith("layers/") and "norm" not in name]
    outputs = []
    for share in (0.0, 0.05):  # without layers; with layers so small that two half steps are about one
        module.load_state_dict({**weights, **{name: share * weights[name] for name in inner}})
        outputs.append(module(ids))
    tall = grown(small.with_weights(module), scale, 0)
    assert len({name.split(".")[1] for name in tall.weights if name.startswith("layers.")}) == 4
    adds = (outputs[1] - outputs[0]).abs().max()
    assert (tall.module()(ids) - outputs[1]).abs().max() < 0.05 * adds


def test_a_bag_of_words_adds_up_what_words_say() -> None:
    net = BagOfWords()
    with torch.no_grad():
        net.words.weight[5] = torch.tensor([1.0, 2.0])
        net.bias.copy_(torch.tensor([0.5, 0.0]))
    assert net(torch.tensor([[1, 5, 5, 0, 0]])).tolist() == [[2.5, 4.0]]


def test_a_stopped_stage_leaves_no_program(assets: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    run = Run(None, SCALE, RECIPE, 0, "cpu", folder)  # type: ignore[arg-type]  # no data: every training fails
    with pytest.raises(AttributeError):
        run.programs()
    assert list(folder.iterdir()) == []
