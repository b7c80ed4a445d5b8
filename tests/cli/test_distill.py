"""dsopt distill and dsopt compress: what they write the other commands take, and a stopped training is gone on with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dsopt
from tests.cli.conftest import Run
from tests.compression.nets import arrays, net_program

SHORT = ("--data", "train.npz", "--epochs", 2, "--lr", 0.01)


@pytest.fixture(autouse=True)
def _files(tmp_path: Path) -> Iterator[None]:
    """Write a teacher, another program, and data; one thread is enough for them."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    net_program(4).save("teacher.dsoptp")
    net_program(1, seed=1).save("other.dsoptp")
    np.savez("train.npz", **arrays(128, 1))
    np.savez("held.npz", **arrays(64, 2))
    yield
    torch.set_num_threads(count)


def test_every_second_layer_learns_and_compiles(run: Run, run_json: Callable[..., Any]) -> None:
    found = run_json("distill", "teacher.dsoptp", "--every", 2, *SHORT, "--validation", "held.npz", "--weights",
                     "labels=0.2,logits=0.5,hidden=0.1", "-o", "small.dsoptp")  # fmt: skip
    assert found["program"] == "small.dsoptp"
    assert found["pairs"] == [["blocks.0", "blocks.1"], ["blocks.2", "blocks.3"]]
    assert [each["epoch"] for each in found["history"]] == [1, 2]
    assert found["scores"]["after"] == max(each["score"] for each in found["history"])
    program = dsopt.Program.load("small.dsoptp")
    held = arrays(64, 2)
    guesses = program.run(torch.from_numpy(held["x"]))[0].argmax(1).numpy()
    assert found["scores"]["after"] == pytest.approx(100 * np.mean(guesses == held["labels"]))
    assert found["parameters"][1] == sum(value.numel() for value in program.weights.values())
    run("compile", "small.dsoptp", "-t", "cpu", "-o", "small.dsopt")


def test_the_student_may_be_pruned_or_another_program_and_text_says_what_came_of_it(run: Run) -> None:
    text = run("distill", "teacher.dsoptp", "--passes", "prune{ratio=0.4}", *SHORT, "--validation", "held.npz").stdout
    assert "teacher-student.dsoptp" in text
    assert "accuracy of the teacher" in text
    assert Path("teacher-student.dsoptp").exists()
    run(
        "distill",
        "teacher.dsoptp",
        "other.dsoptp",
        *SHORT,
        "--weights",
        "hidden=1",
        "--pair",
        "stem=blocks.1",
        "-o",
        "b.dsoptp",
    )
    assert (
        not dsopt.Program.load("b.dsoptp").weights["stem.weight"].equal(net_program(1, seed=1).weights["stem.weight"])
    )
    run("distill", "teacher.dsoptp", "--blocks", "blocks.0|blocks.3", *SHORT, "-o", "c.dsoptp")
    assert "blocks.3.up.weight" in dsopt.Program.load("c.dsoptp").weights


def test_a_training_is_gone_on_with_when_asked(run: Run) -> None:
    arguments = ("distill", "teacher.dsoptp", "--every", 2, *SHORT, "--checkpoint", "runs")
    run(*arguments, "-o", "first.dsoptp")
    assert [path.name for path in Path("runs").iterdir()] == ["distill.ckpt"]
    assert "holds a training" in run(*arguments, "-o", "again.dsoptp", code=2).output
    run(*arguments, "--resume", "-o", "again.dsoptp")
    assert Path("again.dsoptp").read_bytes() == Path("first.dsoptp").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "there is no student"),
        (("--every", 2, "--blocks", "blocks.0"), "name one of them"),
        (("--every", 2, "--weights", "logit=1"), "--weights cannot be read at 'logit=1'"),
        (("--every", 2, "--weights", "logits=much"), "--weights cannot be read"),
        (("--every", 2, "--pair", "stem"), "does not name two modules"),
        (("--every", 2, "--resume"), "--resume needs --checkpoint"),
        (("--every", 2, "--temperature", 0), "temperature is 0"),
        (("--every", 2, "--patience", 1), "patience needs scores"),
        (("--blocks", "blocks.9"), "no layer 'blocks.9'"),
        (("--every", 2, "--labels", "classes"), "the data holds no labels"),
    ],
)
def test_options_that_do_not_fit_are_refused(run: Run, arguments: tuple[Any, ...], message: str) -> None:
    assert message in " ".join(run("distill", "teacher.dsoptp", *SHORT, *arguments, code=2).output.split())
    assert not Path("teacher-student.dsoptp").exists()


def test_all_stages_in_one_command(run: Run, run_json: Callable[..., Any]) -> None:
    arguments = (
        "teacher.dsoptp", "-t", "cpu", "--stages", "remove-blocks{every=2},distill{epochs=1},qat{epochs=1}", "--data", "train.npz",
        "--validation", "held.npz", "--folder", "stages", "--seconds", 0, "-o", "small.dsopt",
    )  # fmt: skip
    found = run_json("compress", *arguments)
    assert [row["stage"].partition("{")[0] for row in found["stages"]] == [
        "start", "remove-blocks", "distill", "qat", "compile for cpu",
    ]  # fmt: skip
    assert found["metric"] == "accuracy"
    before = Path("small.dsopt").read_bytes()
    text = run("compress", *arguments).stdout  # nothing is done again
    assert Path("small.dsopt").read_bytes() == before
    assert text.splitlines()[0].split()[:2] == ["stage", "accuracy"]
    assert "small.dsopt" in text.splitlines()[-2]
    run("inspect", "small.dsopt")
    assert (
        "unknown stage"
        in run("compress", "teacher.dsoptp", "-t", "cpu", "--stages", "shrink", "--data", "train.npz", code=2).output
    )
