"""Boards and limits on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.target.test_boards import GOOD

TINY = ("compile", "tests.cli.models:tiny", "--dim", "batch=1")


def test_boards_are_listed_with_their_memories(run: Run, run_json: Callable[..., Any]) -> None:
    Path("ours.toml").write_text(GOOD)
    found = {each["name"]: each for each in run_json("targets", "--boards", "ours.toml")["boards"]}
    assert found["raspberry-pi-pico"]["core"] == "cortex-m0plus"
    assert found["my-board"]["regions"][0] == {"name": "sram", "bytes": 131_072, "kind": "internal"}
    text = run("targets", "--boards", "ours.toml").stdout
    assert "my-board" in text
    assert "axi-sram 512K, sram123 288K" in text


@pytest.mark.mcu
def test_a_board_is_compiled_for_by_name(run_json: Callable[..., Any]) -> None:
    found = run_json(*TINY, "--board", "Raspberry-Pi-Pico", "-o", "pico")
    assert found["target"] == "mcu:cortex-m0plus@raspberry-pi-pico"
    manifest = json.loads(Path("pico/manifest.json").read_text())
    assert manifest["board"]["clock_hz"] == 133_000_000
    assert run_json("run", "pico")["runs"] == 1


@pytest.mark.mcu
def test_boards_of_a_user_come_from_a_file_or_from_the_configuration(run: Run) -> None:
    Path("ours.toml").write_text(GOOD)
    assert "DS0915" in run(*TINY, "--board", "my-board", code=2).stderr
    run(*TINY, "--board", "my-board", "--boards", "ours.toml", "-o", "first")
    Path("dsopt.toml").write_text('boards = ["ours.toml"]\ntarget = "cpu"\n')
    run(*TINY, "--board", "my-board", "-o", "second")  # the command line goes before the file
    assert Path("first/model.c").read_bytes() == Path("second/model.c").read_bytes()
    assert "my-board" in run("targets").stdout
    Path("dsopt.toml").unlink()
    assert "agrees" in run("verify", "first", "--against", "tests.cli.models:tiny").stdout  # without the file


def test_contradicting_targets_are_refused(run: Run) -> None:
    text = run(*TINY, "--board", "nucleo-l4r5zi", "-t", "cpu", code=2).stderr
    assert "DS0909: --target cpu and --board nucleo-l4r5zi both say what to compile for" in text
    assert "DS0909: missing option '--target' or '--board'" in run(*TINY, code=2).stderr
    assert "limit a microcontroller, and the target is cpu" in run(*TINY, "-t", "cpu", "--ram", "64K", code=2).stderr
    more = run(*TINY, "--board", "nucleo-f401re", "--ram", "200K", code=2).stderr
    assert "DS0909: --ram allows 204,800 bytes, and nucleo-f401re has 98,304" in more
    assert "DS0913: --ram is 'lots'" in run(*TINY, "-t", "mcu:cortex-m4", "--ram", "lots", code=2).stderr
