"""The start-up benchmark starts real processes and sees what they loaded."""

from __future__ import annotations

import subprocess

import pytest

from benchmarks import startup


def test_importing_dsopt_loads_nothing_heavy() -> None:
    first, second = startup.measure(3)
    assert first["command"] == "import dsopt"
    assert first["heavy_packages_loaded"] == []
    assert 0 < first["import_seconds"] < first["p50_seconds"]
    assert second["command"] == "dsopt --help"
    assert second["p50_seconds"] > second["bare_python_p50_seconds"] > 0


def test_a_command_that_fails_is_not_timed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        startup._run("-c", "raise SystemExit('said why')")
    assert "said why" in capsys.readouterr().err
