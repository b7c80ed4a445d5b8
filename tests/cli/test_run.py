"""dsopt run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dsopt
from tests.cli.conftest import Run
from tests.cli.models import Tiny


def test_an_artifact_runs_on_the_inputs_of_a_file(run: Run, artifact: Path) -> None:
    x = np.random.default_rng(0).standard_normal((5, 4), dtype=np.float32)
    np.savez("x.npz", x=x)
    run("run", artifact, "--inputs", "x.npz", "-o", "out.npz")
    with torch.no_grad():
        want = Tiny(0)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(np.load("out.npz")["output"], want, rtol=1e-5, atol=1e-5)


def test_random_inputs_are_the_same_for_the_same_seed(run_json: Callable[..., Any], artifact: Path) -> None:
    first, again, other = (
        run_json("run", artifact, "--dim", "batch=3", "--seed", seed)["outputs"] for seed in (1, 1, 2)
    )
    assert first == again != other
    assert first[0]["shape"] == [3, 3]


def test_several_samples_are_several_runs_with_state_between(run: Run) -> None:
    dsopt.compile(dsopt.load_model("tests.cli.models:counter"), "cpu").save("counter")
    np.savez("x.npz", x=np.ones((3, 2, 3), np.float32))
    assert "3 runs" in run("run", "counter", "--inputs", "x.npz", "-o", "out.npz").stdout
    assert np.load("out.npz")["output"][:, 0].tolist() == [4, 8, 12]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "DS0801: there is no artifact at nothing"),
        (["{}", "--inputs", "none.npz"], "there is no file none.npz"),
        (["{}", "--inputs", "text.npz"], "is no .npz file of plain arrays"),
        (["{}", "--inputs", "wrong.npz"], "x: is float64, must be float32"),
        (["{}", "--inputs", "objects.npz"], "is no .npz file of plain arrays"),
        (["{}", "--dim", "width=4"], "the artifact has no varying size 'width'"),
        (["{}", "-o", "."], "is a folder"),
        (["{}", "-o", "/proc/none/out.npz"], "DS0807"),
    ],
)
def test_bad_input_is_a_sentence(run: Run, artifact: Path, arguments: list[str], message: str) -> None:
    Path("text.npz").write_text("hello")
    np.savez("wrong.npz", x=np.ones((2, 4)))
    np.savez("objects.npz", x=np.array([{}], object))
    assert message in run("run", *(text.format(artifact) for text in arguments), code=2).stderr


def test_a_truncated_artifact_is_refused(run: Run, artifact: Path) -> None:
    content = artifact.read_bytes()
    for length in (0, 10, len(content) // 2, len(content) - 1):
        Path("short.dsopt").write_bytes(content[:length])
        assert "truncated or altered" in run("run", "short.dsopt", code=2).stderr


def test_inputs_that_are_no_numbers_are_noted(run: Run, run_json: Callable[..., Any], artifact: Path) -> None:
    x = np.zeros((5, 4), np.float32)
    np.savez("fine.npz", x=x)
    x[2, 1] = np.nan
    np.savez("x.npz", x=x)
    assert "NaN" not in run("run", artifact, "--inputs", "fine.npz").stderr
    assert "input x holds NaN in 1 of 1 runs" in run("run", artifact, "--inputs", "x.npz").stderr
    assert run_json("run", artifact, "--inputs", "x.npz")["outputs"][0]["mean"] == "nan"
