"""dsopt compile."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsopt.artifact import Artifact, load_artifact
from dsopt.cli.compile import default_output
from tests.cli.conftest import Run

TINY = "tests.cli.models:tiny"


def test_a_model_becomes_a_folder_that_runs(run: Run) -> None:
    text = run("compile", TINY, "--target", "cpu").stdout
    assert "artifact  tiny-cpu" in text
    assert "relative error" in text
    assert load_artifact("tiny-cpu").target == "cpu"
    assert "output" in run("run", "tiny-cpu").stdout


def test_one_json_document_says_what_was_built(run_json: Callable[..., Any]) -> None:
    found = run_json("compile", TINY, "-t", "cpu", "-o", "a.dsopt", "--dim", "batch=3")
    assert found["artifact"] == "a.dsopt"
    assert found["target"] == "cpu"
    assert found["inputs"] == [{"name": "x", "shape": [3, 4], "dtype": "float32"}]
    assert found["check"]["checked"]
    assert found["check"]["max_relative_error"] < 1e-5
    assert [each["name"] for each in found["passes"]]


def test_the_same_model_gives_the_same_bytes(run: Run) -> None:
    run("compile", TINY, "-t", "cpu", "-o", "a.dsopt")
    run("compile", TINY, "-t", "cpu", "-o", "b.dsopt")
    assert Path("a.dsopt").read_bytes() == Path("b.dsopt").read_bytes()


def test_passes_are_chosen_explained_and_dumped(run: Run) -> None:
    text = run(
        "compile", "tests.cli.models:unfolded", "-t", "cpu", "--passes", "fold-batch-norm,remove-dead-code", "--explain", "--dump", "dump"
    ).stdout  # fmt: skip
    assert "left     " in text
    assert sorted(os.listdir("dump")) == ["00-input.txt", "01-fold-batch-norm.txt", "02-remove-dead-code.txt"]


def test_fail_on_skip_fails_and_writes_nothing(run: Run) -> None:
    result = run(
        "compile", "tests.cli.models:unfolded", "-t", "cpu", "-o", "a", "--passes", "fold-batch-norm", "--fail-on", "skip", code=1
    )  # fmt: skip
    assert "DS0920: 1 places of the program" in result.stderr
    assert "fold-batch-norm: " in result.stderr
    assert not Path("a").exists()


def test_data_is_used_for_the_check(run: Run, run_json: Callable[..., Any]) -> None:
    np.savez("data.npz", x=np.ones((2, 4), np.float32))
    assert run_json("compile", TINY, "-t", "cpu", "--data", "data.npz")["check"]["data"] == "given"
    np.savez("wrong.npz", z=np.ones((2, 4), np.float32))
    assert "x: missing" in run("compile", TINY, "-t", "cpu", "--data", "wrong.npz", code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([TINY, "-t", "abacus"], 2, "DS0904: unknown target 'abacus'"),
        ([TINY, "-t", "mcu:z80"], 2, "'z80' is neither a core nor a board"),
        ([TINY, "-t", "cpu", "--passes", "fold-batchnorm"], 2, "unknown pass 'fold-batchnorm'"),
        ([TINY, "-t", "cpu", "--passes", "fold-batch-norm{x=1}"], 2, "has no option 'x'"),
        ([TINY, "-t", "cpu", "--dim", "width=3"], 2, "DS0201"),
        ([TINY, "-t", "cpu", "--name", "5 x"], 2, "is no C identifier"),
        ([TINY, "-t", "cpu", "-o", "/proc/none/a"], 2, "DS0807"),
        ([TINY, "-t", "cpu", "-o", "taken"], 2, "DS0806"),
        (["nothing.pt2", "-t", "cpu"], 2, "there is no file nothing.pt2"),
        (["tests.cli.models:nothing", "-t", "cpu"], 2, "tests.cli.models has no 'nothing'"),
        (["tests.cli.models:broken", "-t", "cpu"], 3, "no weights today"),
        (["tests.cli.models:unsupported", "-t", "cpu"], 3, "DS0401: cpu cannot run 2 of the program's operators"),
    ],
)
def test_bad_input_is_a_sentence_with_the_right_exit_code(
    run: Run, arguments: list[str], code: int, message: str
) -> None:
    Path("taken").mkdir()
    (Path("taken") / "diary.txt").write_text("mine")
    before = sorted(os.listdir())
    assert message in run("compile", *arguments, code=code).stderr
    assert sorted(os.listdir()) == before
    assert os.listdir("taken") == ["diary.txt"]


def test_every_blocker_is_named_with_its_line(run: Run) -> None:
    text = run("compile", "tests.cli.models:unsupported", "-t", "cpu", code=3).stderr
    assert "bessel_j0" in text
    assert "airy_ai" in text
    assert "models.py:" in text


@pytest.mark.parametrize(
    ("model", "place"),
    [
        ("models.resnet:resnet50", "resnet50-mcu-cortex-m4"), ("a/b c/net.pt2", "net-mcu-cortex-m4"),
        ("tests.cli.models:tiny", "tiny-mcu-cortex-m4"),
    ],
)  # fmt: skip
def test_without_a_path_the_artifact_is_named_after_model_and_target(model: str, place: str) -> None:
    assert default_output(model, "mcu:cortex-m4") == Path(place)


def test_fail_on_fallback_names_the_layers_that_run_elsewhere(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from dsopt.backends.cpu import CpuBackend

    emit = CpuBackend.emit

    def with_fallback(self: CpuBackend, *arguments: Any) -> Artifact:
        artifact = emit(self, *arguments)
        layers = [{**layer, "fallback": "no kernel for float16"} for layer in artifact.manifest["layers"][:1]]
        return replace(artifact, manifest={**artifact.manifest, "layers": [*layers, *artifact.manifest["layers"][1:]]})

    monkeypatch.setattr(CpuBackend, "emit", with_fallback)
    assert "first: no kernel for float16" in run("compile", TINY, "-t", "cpu", "--fail-on", "fallback", code=1).stderr
    assert "runs elsewhere: first  no kernel for float16" in run("compile", TINY, "-t", "cpu").stdout
