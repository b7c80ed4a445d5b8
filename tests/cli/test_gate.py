"""dsopt compile with an accuracy gate, and what inspect, report and verify say of the quantised artifact."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dsopt
from dsopt.artifact import Artifact, load_artifact
from tests.accuracy.nets import layers, samples
from tests.cli.conftest import Run

MODEL = "tests.cli.models:outlier"
FOUR_BITS = ("--passes", "...,quantize{weights=4}", "--data", "d.npz", "--calibration-samples", "50")


@pytest.fixture
def data() -> Path:
    """Write samples whose labels are the float model's own classes."""
    x = samples(200)
    labels = layers(2.0).run(torch.from_numpy(x))[0].argmax(1).numpy()
    np.savez("d.npz", x=x, labels=labels, other=(labels + 1) % 10)
    return Path("d.npz")


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return layers() at 8 bits, for the CPU."""
    place = tmp_path_factory.mktemp("quantised") / "q.dsopt"
    dsopt.compile(layers(), "cpu", "...,quantize", {"x": samples(200)}).save(place)
    return place


# ---- compile ----


def test_the_gate_passes_and_is_written_down(run: Run, run_json: Callable[..., Any], data: Path) -> None:
    text = run("compile", MODEL, "-t", "cpu", *FOUR_BITS, "--metric", "accuracy", "--max-drop", 60, "-o", "a").stdout
    assert re.search(
        r"accuracy  accuracy [\d.]+ against 100 in float on 150 samples, by ONNX Runtime: .* 60 allowed", text
    )
    document = run_json("compile", MODEL, "-t", "cpu", *FOUR_BITS, "--max-drop", 60, "-o", "b")
    assert document["accuracy"] == load_artifact("b").manifest["accuracy"]
    assert document["accuracy"]["passes"]


def test_raised_layers_are_shown_by_sensitivity(run: Run, data: Path) -> None:
    text = run("compile", MODEL, "-t", "cpu", *FOUR_BITS, "--max-drop", 25, "-o", "a").stdout
    table = text[text.index("Signal over noise") :].splitlines()[2:]
    assert "second" in table[0]
    assert "8-bit weights" in table[0]


def test_a_miss_fails_with_the_table_of_layers_and_writes_nothing(run: Run, data: Path) -> None:
    result = run("compile", MODEL, "-t", "cpu", *FOUR_BITS, "--max-drop", 1, "--fallback", "none", "-o", "a", code=1)
    assert "DS0342: the drop in accuracy is" in result.stderr
    rows = [line for line in result.stderr.splitlines() if " dB " in line]
    assert "in second" in rows[0]
    assert len(rows) == 3
    assert os.listdir() == ["d.npz"]


def test_labels_may_have_another_name(run_json: Callable[..., Any], data: Path) -> None:
    found = run_json("compile", MODEL, "-t", "cpu", "--data", "d.npz", "--labels", "other", "-o", "a")
    assert found["accuracy"]["float"] < 50
    assert found["accuracy"]["drop"] == 0


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--max-drop", 1), 2, "DS0345"),
        (("--max-drop", 1, "--data", "d.npz", "--metric", "f1"), 2, "DS0341"),
        (("--max-drop", -1, "--data", "d.npz"), 2, "--max-drop"),
        (("--passes", "...,quantize"), 2, "DS0311"),
        (("--passes", "...,quantize{keep=no_such_layer}", "--data", "d.npz"), 2, "DS0310"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(
    run: Run, data: Path, options: tuple[object, ...], code: int, words: str
) -> None:
    assert words in run("compile", MODEL, "-t", "cpu", *options, "-o", "a", code=code).output
    assert os.listdir() == ["d.npz"]


def test_the_passes_are_listed_with_their_options(run: Run) -> None:
    text = run("passes").stdout
    for name in ("quantize", "quantize-prepare", "quantize-convert", "lower-integer"):
        assert re.search(rf"^{name}\b", text, re.MULTILINE), name


# ---- inspect and verify ----


def test_inspect_shows_grids_ranges_saturation_and_noise(
    run: Run, run_json: Callable[..., Any], quantised: Path
) -> None:
    values = run_json("inspect", quantised)["quantization"]
    assert {each["layer"] for each in values} >= {"x", "first", "second", "third"}
    weight = next(each for each in values if each["kind"] == "weight" and each["layer"] == "first")
    real = layers().weights["first.weight"]
    steps = real.abs().amax(1) / 127
    assert weight["scale"][1] <= float(steps.max()) * (1 + 1e-6)
    assert weight["observed"] == pytest.approx([float(real.min()), float(real.max())], rel=1e-5)
    text = run("inspect", quantised).stdout
    assert re.search(r"rounded +what +bits +scale +zero point +observed +saturated % +dB", text)


def test_verify_compares_with_the_model_quantised_again(run: Run, quantised: Path) -> None:
    np.savez("d.npz", x=samples(200))
    same = ("--against", "tests.cli.models:plain_layers", "--data", "d.npz")
    assert "agrees with the quantised program" in run("verify", quantised, *same).stdout
    assert "DS0311" in run("verify", quantised, *same[:2], code=2).stderr
    run("verify", quantised, "--against", MODEL, "--data", "d.npz", code=1)


# ---- report ----


class _Page(HTMLParser):
    """Collects tags, attributes and what they name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def test_the_report_is_one_page_with_a_histogram_of_each_value(run: Run, quantised: Path) -> None:
    run("report", quantised, "-o", "r.html")
    text = Path("r.html").read_text()
    run("report", quantised, "-o", "again.html")
    assert Path("again.html").read_text() == text
    page = _Page(text)
    count = len(load_artifact(quantised).manifest["quantization"])
    assert page.tags.count("svg") == count > 5
    assert "script" not in page.tags
    named = [
        str(value) for name, value in page.attributes if name in ("src", "href", "action") or name.startswith("on")
    ]
    assert all(value.startswith("#") for value in named)


def test_a_hostile_manifest_cannot_put_markup_into_the_report(run: Run, quantised: Path) -> None:
    opened = load_artifact(quantised)
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>\u202e'
    values = [{**each, "layer": evil, "op": evil} for each in opened.manifest["quantization"]]
    Artifact({**opened.manifest, "quantization": values}, opened.files).save("evil.dsopt")
    run("report", "evil.dsopt", "-o", "r.html")
    page = _Page(Path("r.html").read_text())
    assert not {"script", "img"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "\u202e" not in Path("r.html").read_text()


@pytest.mark.parametrize(
    "change",
    [{"histogram": ["a"]}, {"scale": "1"}, {"histogram": [-1]}, {"bits": None}, {"observed": [0]}, {"layer": {"a": 1}}],
)
def test_malformed_statistics_are_refused_in_words(run: Run, quantised: Path, change: dict[str, Any]) -> None:
    opened = load_artifact(quantised)
    values = [{**each, **change} for each in opened.manifest["quantization"]]
    Artifact({**opened.manifest, "quantization": values}, opened.files).save("bad.dsopt")
    result = run("report", "bad.dsopt", "-o", "r.html", code=2)
    assert "DS" in result.stderr
    assert not Path("r.html").exists()


def test_an_artifact_that_is_not_quantised_has_a_report_too(run: Run, artifact: Path) -> None:
    document = json.loads(run("report", artifact, "--json").stdout)
    assert document["rounded_values"] == 0
    assert "<svg" not in Path("report.html").read_text()


def test_a_model_that_was_quantised_before_is_judged_against_its_float_model(
    run: Run, run_json: Callable[..., Any], data: Path
) -> None:
    before = layers(2.0)
    before.save("float.dsoptp")
    context = dsopt.PassContext(calibration=[{"x": torch.from_numpy(samples(50))}])
    passes = dsopt.PassManager(dsopt.parse_pipeline("quantize{weights=4}"))
    passes.run(before, context)[0].save("quantised.dsoptp")
    options = ("compile", "quantised.dsoptp", "-t", "cpu", "--data", "d.npz", "--max-drop")
    assert "--reference MODEL" in run(*options, 1, "-o", "a", code=2).stderr
    assert "DS0342" in run(*options, 1, "--reference", "float.dsoptp", "-o", "a", code=1).stderr
    found = run_json(*options, 60, "--reference", "float.dsoptp", "-o", "a")["accuracy"]
    assert (found["float"], found["against"]) == (100, "float")
    assert 1 < found["drop"] <= 60


def test_a_long_list_of_layers_does_not_break_the_table_of_passes(run: Run, data: Path) -> None:
    names = "|".join(["first", "second", "third"] * 10)
    passes = f"...,quantize{{weights=4,int8={names}}}"
    text = run("compile", MODEL, "-t", "cpu", "--passes", passes, "--data", "d.npz", "-o", "a").stdout
    rows = text[: text.index("\n\n")].splitlines()
    assert max(map(len, rows)) < 130
    assert "quantize{weights=4,int8=first|" in text
