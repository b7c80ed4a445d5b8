"""What the tests of the command line share: a runner in an empty folder, and one compiled artifact."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dsopt.cli import cli

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder, so that no configuration of the checkout is found; reports of faults go to another."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("reports")))


@pytest.fixture
def run() -> Run:
    """Return run(*arguments, code=0): the result of a command, after comparing its exit code."""

    def invoke(*arguments: object, code: int = 0, env: dict[str, str] | None = None) -> Result:
        result = CliRunner(env=env).invoke(cli, [str(argument) for argument in arguments])
        assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
        assert "Traceback" not in result.output
        return result

    return invoke


@pytest.fixture
def run_json(run: Run) -> Callable[..., Any]:
    """Return run_json(command, *arguments, code=0): the one JSON document that it prints."""

    def invoke(command: str, *arguments: object, code: int = 0) -> Any:
        document = json.loads(run(command, *arguments, "--json", code=code).stdout)
        assert document["schema"] == 1
        assert document["command"] == command
        return document

    return invoke


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return tests.cli.models:tiny, compiled for the CPU."""
    import dsopt

    place = tmp_path_factory.mktemp("artifact") / "tiny.dsopt"
    dsopt.compile(dsopt.load_model("tests.cli.models:tiny"), "cpu").save(place)
    return place
