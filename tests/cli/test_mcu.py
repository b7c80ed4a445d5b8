"""The same commands on a microcontroller artifact: generated C on an emulated core."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dsopt
from tests.cli.conftest import Run
from tests.cli.models import Tiny

pytestmark = pytest.mark.mcu

TINY = "tests.cli.models:tiny"


@pytest.fixture(scope="module")
def chip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("chip") / "tiny"
    dsopt.compile(dsopt.load_model(TINY, dims={"batch": 1}), "mcu:cortex-m4").save(place)
    return place


def test_compile_says_what_the_image_needs(run: Run, run_json: Callable[..., Any]) -> None:
    found = run_json("compile", TINY, "-t", "mcu:cortex-m4", "--dim", "batch=1", "-o", "chip")
    assert found["memory"]["ram_bytes"] > 0
    assert found["memory"]["flash_bytes"] > 0
    assert (Path("chip") / "model.h").exists()
    text = run("compile", TINY, "-t", "mcu:cortex-m4", code=3).stderr
    assert "--dim batch=1" in text


def test_samples_run_on_the_emulated_core(run: Run, chip: Path) -> None:
    x = np.random.default_rng(0).standard_normal((5, 4), dtype=np.float32)
    np.savez("x.npz", x=x)
    run("run", chip, "--inputs", "x.npz", "-o", "out.npz")
    with torch.no_grad():
        want = Tiny(0)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(np.load("out.npz")["output"].reshape(5, 3), want, rtol=1e-5, atol=1e-5)


def test_instructions_are_counted_by_layer(run: Run, run_json: Callable[..., Any], chip: Path) -> None:
    found = run_json("bench", chip, "--layers")
    counts = [each["instructions"] for each in found["layers"]]
    assert 0 < sum(counts) <= found["instructions"]
    assert [each["layer"] for each in found["layers"]] == ["first", "second"]
    assert "share" in run("bench", chip, "--layers").stdout
    assert "instructions" in run("inspect", chip).stdout


def test_the_first_layer_that_differs_is_named(run_json: Callable[..., Any], chip: Path) -> None:
    assert run_json("verify", chip, "--against", TINY, "--bisect")["agrees"]
    found = run_json("verify", chip, "--against", "tests.cli.models:other", "--bisect", code=1)
    assert found["first_difference"]["layer"] == "second"


def test_a_quantised_chip_gives_the_bits_of_the_model_quantised_again(run: Run, run_json: Callable[..., Any]) -> None:
    np.savez("d.npz", x=np.random.default_rng(0).standard_normal((60, 4), dtype=np.float32))
    options = ("-t", "mcu:cortex-m4", "--dim", "batch=1", "--passes", "...,quantize", "--data", "d.npz")
    text = run("compile", TINY, *options, "--calibration-samples", 40, "--max-drop", 20, "-o", "q").stdout
    assert "agreement" in text  # without labels, what is judged is the class
    assert "on 20 samples, by the generated C, built for this computer" in text
    arguments = ("q", "--data", "d.npz", "--inputs", "d.npz", "--bisect")
    found = run_json("verify", *arguments, "--against", TINY, "--tolerance", 0)
    assert (found["agrees"], found["against"], found["runs"]) == (True, "the quantised program", 60)
    assert [each["relative_error"] for each in found["layers"]] == [0] * len(found["layers"])
    other = run_json("verify", *arguments, "--against", "tests.cli.models:other", code=1)
    assert other["first_difference"]["layer"] == "second"
    assert "flash bytes" in run("inspect", "q").stdout
    run("report", "q")
    assert "flash bytes" in Path("report.html").read_text()


def test_an_output_of_integers_that_is_put_in_order_is_compared_as_what_it_stands_for(
    run: Run, run_json: Callable[..., Any]
) -> None:
    np.savez("d.npz", input=np.random.default_rng(0).standard_normal((6, 3, 10, 10), dtype=np.float32))
    net = ("tests.cli.models:pixels", "--data", "d.npz")
    run("compile", *net, "-t", "mcu:cortex-m4", "--io", "int8", "--passes", "...,quantize", "-o", "q")
    found = run_json("verify", "q", "--against", *net, "--bisect")
    assert found["agrees"]
    assert found["first_difference"] is None
    assert [each["relative_error"] for each in found["layers"]] == [0] * len(found["layers"])
    assert any("dequantize" in each["op"] for each in found["layers"])


def test_patches_of_a_layer_are_summed_and_ports_of_integers_are_shown(run: Run, run_json: Callable[..., Any]) -> None:
    np.savez("d.npz", x=np.random.default_rng(0).standard_normal((8, 3, 24, 24), dtype=np.float32))
    net = ("compile", "tests.cli.models:stages", "-t", "mcu:cortex-m4", "--io", "int8", "--passes", "...,quantize")
    made = run(*net, "--data", "d.npz", "--optimize", "ram", "-o", "p").stdout
    manifest = json.loads(Path("p/manifest.json").read_text())
    patches, rows = manifest["patches"], manifest["layers"]
    told = f"{patches['rows']} x {patches['columns']} of {patches['layer']} and all before it"
    bench, shown = run("bench", "p", "--layers").stdout, run("inspect", "p").stdout
    assert all(f"patches{told}".replace(" ", "") in text.replace(" ", "") for text in (made, bench, shown))
    first = [row for row in rows if row["layer"] == "features.0" and row["op"] == "dsopt.q_conv.default"]
    assert len(first) == patches["rows"] * patches["columns"] > 1
    for text in (bench, shown):
        (line,) = [line.split() for line in text.splitlines() if line.startswith("features.0 ") and "q_conv" in line]
        assert "matrix" in line
        assert str(len(first)) in line
        assert f"{sum(row['instructions'] for row in first):,}" in line
    assert len(run_json("bench", "p", "--layers")["layers"]) == len(rows)
    checked = run("verify", "p", "--against", "tests.cli.models:stages", "--data", "d.npz", "--bisect").stdout
    assert "Layers that run in patches are never whole in memory" in checked
    stored = manifest["inputs"][0]["stored"]
    port = f"int8[1, 3, 24, 24], scale {stored['scale']:.9g}, zero point {stored['zero_point']}"
    assert port in shown
    assert port in made
