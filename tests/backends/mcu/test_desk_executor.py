"""The generated C on this computer, by which microcontroller builds are judged: the bits of the program, from every compiler here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

import dsopt
from dsopt import api
from dsopt.backends.mcu.desk import DeskExecutor
from dsopt.errors import CheckError
from dsopt.native import host_compilers
from dsopt.simulate import desk
from tests.conftest import Counter

pytestmark = pytest.mark.mcu


@pytest.mark.parametrize("compiler", host_compilers(), ids=lambda command: "zig" if "ziglang" in command else "cc")
def test_a_quantised_network_gives_the_bits_of_its_program(
    compiler: Sequence[str], conv_net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GCC 12 for x86-64 once dropped all but the last layers of this one, when it had put addresses of the arena into them."""
    monkeypatch.setattr(desk, "host_compilers", lambda: (tuple(compiler),))
    x = np.random.default_rng(0).standard_normal((12, 1, 3, 8, 8)).astype(np.float32)
    program = dsopt.capture(conv_net, (torch.from_numpy(x[0]),))
    build = api.build(program, "mcu:cortex-m4", "...,quantize", [{"x": each} for each in x])
    executor = DeskExecutor(build.artifact)
    try:
        got = np.stack([result["output"] for result in executor.run_many([{"x": each} for each in x])])
    finally:
        executor.close()
    want = np.stack([build.program.run(torch.from_numpy(each))[0].numpy() for each in x])
    np.testing.assert_array_equal(got, want)


class Sequences(nn.Module):
    """Convolutions in time of every kind, a GRU and a linear layer: kernels by windows, by rows and by channels, and loops without."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv1d(6, 16, 5, padding=2),
            nn.ReLU(),
            nn.Conv1d(16, 16, 3, padding=1, groups=16),
            nn.Conv1d(16, 24, 1),
            nn.ReLU(),
            nn.Conv1d(24, 48, 3, padding=1, groups=24),
            nn.Conv1d(48, 12, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.gru = nn.GRU(12, 20, batch_first=True)
        self.linear = nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.gru(self.convolutions(x).transpose(1, 2))
        last: torch.Tensor = self.linear(y[:, -1])
        return last


@pytest.fixture(scope="module")
def sequences() -> tuple[api.Build, np.ndarray]:
    torch.manual_seed(0)
    x = np.random.default_rng(0).standard_normal((8, 1, 6, 32)).astype(np.float32)
    program = dsopt.capture(Sequences().eval(), (torch.from_numpy(x[0]),))
    return api.build(program, "mcu:cortex-m4", "...,quantize", [{"x": each} for each in x]), x


@pytest.mark.parametrize("level", ["-O1", "-O2", "-O3"])
@pytest.mark.parametrize("compiler", host_compilers(), ids=lambda command: "zig" if "ziglang" in command else "cc")
def test_every_level_of_optimisation_gives_the_bits_of_the_program(
    sequences: tuple[api.Build, np.ndarray],
    compiler: Sequence[str],
    level: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """GCC 12 at -O3, vectorising layers with kernels inside of them, read columns before they were written, in spite of `restrict`."""
    build, x = sequences
    monkeypatch.setattr(desk, "host_compilers", lambda: (tuple(compiler),))
    monkeypatch.setattr(desk, "_FLAGS", tuple(level if flag == "-O2" else flag for flag in desk._FLAGS))
    executor = DeskExecutor(build.artifact)
    try:
        got = np.stack([result["output"] for result in executor.run_many([{"x": each} for each in x])])
    finally:
        executor.close()
    np.testing.assert_array_equal(got, np.stack([build.program.run(torch.from_numpy(each))[0].numpy() for each in x]))


def test_no_state_is_carried_from_one_run_to_the_next() -> None:
    build = api.build(dsopt.capture(Counter().eval(), (torch.ones(2, 3),)), "mcu:cortex-m4")
    feed = {"x": np.ones((2, 3), np.float32), "state.total": np.full(3, 5, np.float32)}
    executor = DeskExecutor(build.artifact)
    try:
        results = executor.run_many([feed, feed])
    finally:
        executor.close()
    assert [result["output"].tolist() for result in results] == [[14, 14, 14]] * 2
    assert results[1]["next.total"].tolist() == [7, 7, 7]


def test_c_that_fails_is_reported() -> None:
    build = api.build(dsopt.capture(nn.ReLU(), (torch.ones(2),)), "mcu:cortex-m4")
    name = "model.c"
    broken = (
        build.artifact.files[name].decode().replace('#include "model.h"', '#include "model.h"\n#include <stdlib.h>', 1)
    )
    broken = broken.replace("for (", "exit(3); for (", 1)
    files = {**build.artifact.files, name: broken.encode()}
    executor = DeskExecutor(dsopt.Artifact(build.artifact.manifest, files))
    try:
        with pytest.raises(CheckError, match="DS1080: the generated C ended with status 3"):
            executor.run({"input": np.ones(2, np.float32)})
    finally:
        executor.close()
