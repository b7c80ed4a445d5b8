"""One artifact for all tests of projects, and what builds C on this computer."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

import dsopt
from dsopt.artifact import Artifact
from tests.backends.tir.host_runner import host_compiler

Build = Callable[..., str]

FLAGS = ("-O1", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror")


@pytest.fixture(scope="session")
def chip() -> Artifact:
    """Return a quantised network with floats at its borders, for a board."""
    program = dsopt.load_model("tests.cli.models:plain_convolutions")
    x = np.random.default_rng(0).standard_normal((12, 3, 16, 16), dtype=np.float32)
    return dsopt.compile(program, "mcu:raspberry-pi-pico", "...,quantize", {"x": x}, name="keyword")


@pytest.fixture(scope="session")
def stateful() -> Artifact:
    """Return a network with a state."""
    return dsopt.compile(dsopt.load_model("tests.cli.models:counter"), "mcu:cortex-m4", name="second")


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Return build(folder, sources, includes, *more): what the program of these sources prints; its status must be 0."""

    def compiled(folder: Path, sources: Sequence[str], includes: Sequence[str], *more: str) -> str:
        objects = []
        for number, source in enumerate(sources):
            objects.append(str(tmp_path / f"{number}.o"))
            is_c = source.endswith(".c")
            language = ("-x", "c", "-std=c99") if is_c else ("-x", "c++", "-std=c++17")
            run(
                folder,
                host_compiler(),
                *language,
                *FLAGS,
                *more,
                *(f"-I{path}" for path in includes),
                "-c",
                source,
                "-o",
                objects[-1],
            )
        run(folder, host_compiler(), *objects, "-o", str(tmp_path / "program"))
        return run(folder, str(tmp_path / "program"))

    return compiled


def run(folder: Path, *command: str) -> str:
    """Run a command as a user's shell would, even where `make` runs these tests, and return what it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout
