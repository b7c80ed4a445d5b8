"""The command line goes before the environment, and the environment before the file."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Run

SEED = 'seed = 1\n[run]\ndim = ["batch=2"]\n'


def _outputs(run: Run, artifact: Path, *arguments: str, env: dict[str, str] | None = None) -> list[dict[str, object]]:
    outputs: list[dict[str, object]] = json.loads(run("run", artifact, "--json", *arguments, env=env).stdout)["outputs"]
    return outputs


def test_options_come_from_the_command_line_then_the_environment_then_the_file(run: Run, artifact: Path) -> None:
    plain = {seed: _outputs(run, artifact, "--seed", str(seed), "--dim", "batch=2") for seed in (0, 1, 2, 3)}
    Path("dsopt.toml").write_text(SEED)
    assert _outputs(run, artifact) == plain[1]
    assert _outputs(run, artifact, env={"DSOPT_RUN_SEED": "2"}) == plain[2]
    assert _outputs(run, artifact, "--seed", "3", env={"DSOPT_RUN_SEED": "2"}) == plain[3]


def test_an_unknown_key_is_refused_but_help_still_works(run: Run, artifact: Path) -> None:
    Path("dsopt.toml").write_text("sed = 1\n")
    assert "DS0903" in run("run", artifact, code=2).stderr
    assert run("run", "--help").stdout.startswith("Usage")


def test_a_file_can_be_named(run: Run, artifact: Path) -> None:
    Path("other.toml").write_text('[run]\ndim = ["batch=5"]\n')
    result = json.loads(run("--config", "other.toml", "run", artifact, "--json").stdout)
    assert result["outputs"][0]["shape"] == [5, 3]


def test_a_value_of_the_wrong_kind_is_refused(run: Run, artifact: Path) -> None:
    Path("dsopt.toml").write_text('seed = "many"\n')
    assert "'many' is not a valid integer" in run("run", artifact, code=2).stderr
