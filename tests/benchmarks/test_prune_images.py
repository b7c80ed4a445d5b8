"""The benchmark of pruning on images: every method is trained and judged, kept, reported and drawn; sizes are true."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from benchmarks import results_store
from benchmarks.prune import __main__ as prune
from benchmarks.prune import image_data, images
from benchmarks.prune.image_data import Batches, Images, fast_layout
from benchmarks.prune.image_nets import NETWORKS, captured, width_of_size
from benchmarks.prune.images import Plan, accuracy, fresh, image_rows, jobs, parameters_of, summary
from benchmarks.prune.plot import frontier


@pytest.fixture
def data() -> Images:
    """Return images whose class is how bright they are."""
    y = torch.arange(160) % 10
    x = torch.rand(160, 3, 32, 32) * 20 + 24.0 * y[:, None, None, None]
    return Images(x[:128].byte(), y[:128], x[128:].byte(), y[128:])


PLAN = Plan((16, 32), (32,), 1.0, seeds=1, ratios=(0.6,), networks=("resnet8",))


@pytest.fixture
def small(data: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make everything tiny, and keep results elsewhere."""
    monkeypatch.setattr(image_data, "BATCH", 32)
    monkeypatch.setattr(images.Images, "read", staticmethod(lambda assets, most: data))
    monkeypatch.setattr(prune, "Plan", lambda: PLAN)
    monkeypatch.setattr(results_store, "FOLDER", tmp_path / "results")
    return tmp_path


def _run(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    prune.main([str(argument) for argument in (*arguments, "--json")])
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_a_run_is_kept_drawn_and_reported(
    small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--assets", small, "--seeds", 1, "--work", small / "work")
    rows = _run(capsys, *arguments, "--plot", small / "plots")["rows"]
    assert [row["method"] for row in rows] == ["float", "pruned", "int8", "scratch", "scratch-e", "uniform"]
    whole, pruned, int8, scratch, equal, uniform = rows
    assert pruned["parameters"] / whole["parameters"] == pytest.approx(0.4, abs=0.005)
    assert 0.9 < uniform["parameters"] / pruned["parameters"] <= 1
    assert scratch["parameters"] == equal["parameters"] == int8["parameters"] == pruned["parameters"]
    for row in rows:
        assert row["drop"] == pytest.approx(whole["accuracy"] - row["accuracy"])
    stems = ["float", "int8-0.6", "pruned-0.6", "scratch-0.6", "scratch-e-0.6", "uniform-0.6"]
    kept = sorted(path.name for path in (small / "work").iterdir())
    assert kept == [f"resnet8-0-{stem}.{ending}" for stem in stems for ending in ("dsoptp", "json")]
    drawing = ElementTree.fromstring((small / "plots" / "resnet8.svg").read_text())
    assert len(drawing.findall("{*}circle")) == len(rows)
    assert frontier(rows, "resnet8") == (small / "plots" / "resnet8.svg").read_text()

    (path,) = results_store.FOLDER.iterdir()
    document = json.loads(path.read_text())
    assert document["seeds"] == [0]
    assert {"torch", "processor"} <= document["machine"].keys()
    assert document["plan"]["sides"] == [16, 32]
    assert [each["method"] for each in document["trainings"]] == [row["method"] for row in rows]
    reported = _run(capsys, "--report", "--plot", small / "again")
    assert reported["rows"] == rows
    assert reported["runs"][0]["trained on"] == document["machine"]["processor"]
    assert (small / "again" / "resnet8.svg").read_text() == (small / "plots" / "resnet8.svg").read_text()

    monkeypatch.setattr(images, "distill", None)  # nothing is trained twice
    monkeypatch.setattr(images, "qat", None)
    assert _run(capsys, *arguments)["rows"] == rows
    assert _run(capsys, "--assets", small, "--seeds", 1)["rows"] == rows  # the kept run has them all
    assert len(list(results_store.FOLDER.iterdir())) == 1


def test_a_later_call_adds_what_the_newest_run_of_the_plan_lacks(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images.Trainings, "program", lambda self, job: captured(NETWORKS["resnet8"], 1.0, job.seed))
    monkeypatch.setattr(images, "accuracy", lambda program, images: 50.0)
    prune.main(["--assets", str(small), "--seeds", "1"])
    first = json.loads(results_store.newest_path("prune").read_text())["trainings"]
    monkeypatch.setattr(images, "accuracy", lambda program, images: 60.0)
    prune.main(["--assets", str(small), "--seeds", "2"])
    second = json.loads(results_store.newest_path("prune").read_text())["trainings"]
    assert [each for each in second if each["seed"] == 0] == first
    assert {each["accuracy"] for each in second if each["seed"] == 1} == {60.0}
    prune.main(["--assets", str(small), "--seeds", "1"])  # fewer seeds lose none
    third = json.loads(results_store.newest_path("prune").read_text())
    assert third["seeds"] == [0, 1]
    assert sorted(third["trainings"], key=str) == sorted(second, key=str)
    monkeypatch.setattr(prune, "Plan", lambda: replace(PLAN, rate=0.5))
    prune.main(["--assets", str(small), "--seeds", "1"])
    other = json.loads(results_store.newest_path("prune").read_text())["trainings"]
    assert {each["accuracy"] for each in other} == {60.0}


def test_after_the_time_is_over_only_what_is_done_counts(small: Path) -> None:
    assert image_rows(small, PLAN, small / "work", hours=0) == ([], [])
    images.Trainings(Images.read(small, None), PLAN, small / "work").result(jobs(PLAN)[0])
    rows, trainings = image_rows(small, PLAN, small / "work", hours=0)
    assert [(row["method"], row["seeds"]) for row in rows] == [("float", 1)]
    assert [each["method"] for each in trainings] == ["float"]


def test_quick_runs_are_not_kept_and_none_is_said_to_be_missing(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        prune.main(["--report"])
    assert "no run of benchmarks.prune" in capsys.readouterr().err
    monkeypatch.setattr(prune, "image_rows", lambda assets, plan, work, hours, known: ([], []))
    assert _run(capsys, "--assets", small, "--quick")["rows"] == []
    assert not results_store.FOLDER.exists()


def test_a_row_says_how_many_seeds_it_is_of_and_drops_are_of_the_same_seed() -> None:
    def training(method: str, seed: int, accuracy: float) -> dict[str, Any]:
        ratio = 0.0 if method == "float" else 0.6
        return {
            "network": "resnet8",
            "method": method,
            "ratio": ratio,
            "seed": seed,
            "accuracy": accuracy,
            "parameters": 10,
        }

    whole, pruned = summary([training("float", 0, 80.0), training("float", 1, 90.0), training("pruned", 1, 89.0)])
    assert (whole["seeds"], whole["accuracy"], whole["spread"], whole["drop"]) == (2, 85.0, 5.0, 0.0)
    assert (pruned["seeds"], pruned["accuracy"], pruned["spread"], pruned["drop"]) == (1, 89.0, None, 1.0)


def test_every_training_comes_once_and_what_matters_most_first() -> None:
    plan = Plan(seeds=2)
    order = jobs(plan)
    assert len(set(order)) == len(order) == 2 * 2 * 6 + 2 * 2 * 2
    assert {(job.network, job.method) for job in order[:10]} == {
        ("resnet8", each) for each in ("float", "pruned", "int8", "scratch", "scratch-e")
    }
    assert {job.ratio for job in order if job.seed} == {0.0, 0.6}


def test_batches_grow_with_the_epochs_and_take_their_share(data: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_data, "BATCH", 32)
    batches = Batches(data, (16, 32), seed=0)
    assert len(batches) == len(list(batches)) == 4
    seen = []
    for epoch, side in enumerate((16, 32)):
        batches.sampler.set_epoch(epoch)
        pixels, labels = next(iter(batches))
        assert pixels.shape == (32, 3, side, side)
        assert torch.equal((pixels.mean((1, 2, 3)) / 24).round().long().clamp(max=9), labels)
        seen.append(labels.tolist())
    assert seen[0] != seen[1]
    assert len(list(Batches(data, (32,), seed=0, share=0.5))) == 2


def test_a_trained_program_is_judged_by_its_code(data: Images) -> None:
    program = captured(NETWORKS["depthwise"], 0.25, 3)
    with torch.no_grad():
        right = program.run(data.x_test)[0].argmax(1) == data.y_test
    assert accuracy(program, data) == pytest.approx(100 * float(right.double().mean()))


def test_narrow_networks_train_in_a_layout_that_torch_can_take() -> None:
    wide, narrow = (captured(NETWORKS["resnet8"], width, 0) for width in (1.0, 0.4))
    assert fast_layout(wide) == torch.channels_last
    assert fast_layout(narrow) == torch.contiguous_format


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("share", [0.1, 0.4, 0.75])
def test_uniform_networks_are_as_large_as_asked_for(name: str, share: float) -> None:
    whole = parameters_of(captured(NETWORKS[name], 1.0, 0))
    width = width_of_size(NETWORKS[name], int(share * whole))
    assert 0.85 * share < parameters_of(captured(NETWORKS[name], width, 0)) / whole <= share


def test_fresh_weights_say_nothing_of_the_old_ones() -> None:
    program = captured(NETWORKS["resnet8"], 0.5, 1)
    one, again, other = fresh(program, 0), fresh(program, 0), fresh(program, 1)
    for name, value in one.weights.items():
        torch.testing.assert_close(value, again.weights[name], rtol=0, atol=0)
        if value.dim() > 1:
            assert not torch.equal(value, program.weights[name])
            assert not torch.equal(value, other.weights[name])
            assert float(value.std()) == pytest.approx(float(program.weights[name].std()), rel=0.35)
    assert np.isfinite(one.run(torch.zeros(2, 3, 32, 32))[0].numpy()).all()
