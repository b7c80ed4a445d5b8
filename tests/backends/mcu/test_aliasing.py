"""Builds of users that do not say -fno-strict-aliasing: values of several types take turns in the arena, and still all is right."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import dsopt
from dsopt.native import host_compilers

pytestmark = pytest.mark.mcu

SOURCES = ("model.c", "weights.c", "test_vectors.c", "run_tests.c")


class Mixed(nn.Module):
    """Floats, int8, columns and planes of int16, sums of int32, and a state: all of them in one arena, one over another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU6(), nn.Conv2d(16, 16, 3, padding=1, groups=16))
        self.body = nn.Sequential(nn.Hardswish(), nn.Conv2d(16, 24, 1), nn.ReLU6(), nn.Conv2d(24, 8, 3, 2, 1))
        self.cell = nn.LSTM(8, 12, batch_first=True)
        self.head = nn.Linear(12, 5)
        self.register_buffer("mean", torch.zeros(1, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.cell(self.body(self.stem(x)).flatten(2).transpose(1, 2))
        logits = self.head(torch.fmod(y[:, -1], 0.75))
        self.mean.copy_(0.5 * self.mean + 0.5 * logits)
        return torch.softmax(self.mean.clone(), -1)


@pytest.fixture(scope="module", params=["...", "...,quantize", "...,quantize{weights=4}"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    x = np.random.default_rng(0).standard_normal((8, 3, 24, 24), dtype=np.float32)
    program = dsopt.capture(Mixed().eval(), (torch.from_numpy(x[:1]),))
    place = tmp_path_factory.mktemp("aliasing") / "net"
    dsopt.compile(program, "mcu:cortex-m4", request.param, {"x": x}, optimize="ram").save(place)
    return place


@pytest.mark.parametrize("flags", [("-O2",), ("-O3",), ("-O2", "-flto")], ids=" ".join)
@pytest.mark.parametrize("compiler", host_compilers(), ids=lambda command: "zig" if "ziglang" in command else "cc")
def test_strict_aliasing_changes_nothing(folder: Path, compiler: Sequence[str], flags: tuple[str, ...]) -> None:
    command = [*compiler, "-std=c99", *flags, "-fstrict-aliasing", "-ffp-contract=off", *SOURCES, "-o", "tests"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert subprocess.run([folder / "tests"], check=False).returncode == 0
