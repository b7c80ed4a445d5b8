"""Options from dsopt.toml: under the environment, under the command line; unknown keys are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsopt.config import default_map
from dsopt.errors import UsageError

COMMANDS: dict[str, Callable[[], list[str]]] = {
    "compile": lambda: ["target", "fail_on", "seed"],
    "run": lambda: ["seed", "threads", "trust_pickle"],
}


def read(folder: Path, text: str, name: str = "dsopt.toml") -> dict[str, dict[str, Any]]:
    (folder / name).write_text(text)
    return default_map(None, folder, COMMANDS)


def test_no_file_gives_no_options(tmp_path: Path) -> None:
    assert default_map(None, tmp_path / "deep" / "inside", COMMANDS) == {}


def test_keys_are_for_every_command_that_has_them_and_tables_for_one(tmp_path: Path) -> None:
    found = read(tmp_path, 'seed = 3\ntarget = "cpu"\n[compile]\nseed = 4\nfail-on = ["skip"]\n')
    assert found == {"compile": {"seed": 4, "target": "cpu", "fail_on": ["skip"]}, "run": {"seed": 3}}


def test_the_nearest_file_counts_and_pyproject_only_with_our_table(tmp_path: Path) -> None:
    read(tmp_path, "seed = 1\n")
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "pyproject.toml").write_text('[project]\nname = "x"\n')
    assert default_map(None, inner, COMMANDS)["run"] == {"seed": 1}
    (inner / "pyproject.toml").write_text("[tool.dsopt]\nseed = 2\n[tool.dsopt.run]\nthreads = 1\n")
    assert default_map(None, inner, COMMANDS)["run"] == {"seed": 2, "threads": 1}


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("sed = 1", "DS0903", "sets 'sed', which dsopt does not know"),
        ("[comple]\nseed = 1", "DS0903", "Did you mean compile?"),
        ("[run]\ntarget = 1", "DS0903", "sets 'run.target'"),
        ("trust-pickle = true", "DS0903", "only the command line and the environment may set"),
        ("[run]\ntrust-pickle = true", "DS0903", "only the command line and the environment may set"),
        ("seed = ", "DS0902", "is no TOML"),
        ("seed = 2020-01-01", "DS0902", "seed in"),
        ("[run]\nseed = {a = 1}", "DS0902", "seed in"),
        ("seed = \xff", "DS0902", "is no TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, code: str, message: str) -> None:
    (tmp_path / "dsopt.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError) as caught:
        default_map(None, tmp_path, COMMANDS)
    assert caught.value.code == code
    assert message in str(caught.value)


def test_a_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        default_map(tmp_path / "none.toml", tmp_path, COMMANDS)
