"""dsopt passes, targets, doctor, explain, completion."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from dsopt.passes import PASSES
from dsopt.target import parse_target
from tests.cli.conftest import Run


def test_every_pass_is_listed_with_its_options(run: Run, run_json: Callable[..., Any]) -> None:
    found = run_json("passes")["passes"]
    assert [each["name"] for each in found] == sorted(PASSES)
    assert all(each["summary"].endswith(".") for each in found)
    assert {each["name"]: each["options"] for each in found}["fold-constants"] == {"growth_bytes": "1048576"}
    assert "fold-batch-norm" in run("passes").stdout


def test_passes_are_listed_without_tvm() -> None:
    code = (
        "import sys\nfrom dsopt.cli import cli\n"
        "try: cli.main(['passes', '-q'])\nexcept SystemExit as e: print([n for n in ('tvm', 'onnx') if n in sys.modules], e.code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] 0"


def test_every_target_is_listed_and_can_be_named(run: Run, run_json: Callable[..., Any]) -> None:
    names = [each["name"] for each in run_json("targets")["targets"]]
    assert [parse_target(name).name for name in names] == names
    assert "mcu:cortex-m4" in run("targets").stdout


def test_doctor_says_what_is_here_and_how_to_get_the_rest(run: Run, run_json: Callable[..., Any]) -> None:
    found = run_json("doctor")
    here = {each["name"]: each["version"] for each in found["packages"]}
    assert here["numpy"]
    assert here["torch"]
    assert all(each["install"] for each in [*found["packages"], *found["tools"]])
    assert "interpreter" in run("doctor").stdout


def test_doctor_lists_the_onnx_operators(run: Run, run_json: Callable[..., Any]) -> None:
    found = run_json("doctor", "--onnx")["operators"]
    assert "Conv" in found
    assert "Conv" in run("doctor", "--onnx").stdout


def test_a_code_is_explained(run: Run, run_json: Callable[..., Any]) -> None:
    assert run("explain", "DS0302").stdout.startswith("# No such pass\n")
    assert run_json("explain", "ds302")["title"] == "No such pass"
    codes = [each["code"] for each in run_json("explain")["codes"]]
    assert codes == sorted(codes)
    assert "DS0801" in codes


@pytest.mark.parametrize("code", ["DS9999", "DS08000", "hello", ""])
def test_an_unknown_code_is_answered(run: Run, code: str) -> None:
    assert "DS0922: there is no error code" in run("explain", code, code=2).stderr


def test_a_near_code_is_suggested(run: Run) -> None:
    assert "near ones: DS08" in run("explain", "DS0809", code=2).stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_variable_that_answers(run: Run, shell: str) -> None:
    result = run("completion", shell)
    assert f"_DSOPT_COMPLETE={shell}_complete" in result.stdout
    assert "to use it" in result.stderr
    assert run("completion", shell, "-q").stderr == ""


def test_commands_and_options_are_completed() -> None:
    from click.shell_completion import BashComplete

    from dsopt.cli import cli

    completion = BashComplete(cli, {}, "dsopt", "_DSOPT_COMPLETE")
    assert {item.value for item in completion.get_completions([], "co")} == {"compile", "completion", "compress"}
    assert "--fail-on" in {item.value for item in completion.get_completions(["compile"], "--f")}
    assert [item.value for item in completion.get_completions(["completion"], "z")] == ["zsh"]
