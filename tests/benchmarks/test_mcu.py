"""The benchmark of microcontrollers: every column for a network of one's own, names that it refuses, ratios to the peer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dsopt
from benchmarks import mcu, mcu_models
from tests.simulate.images import needs_qemu

ISSUED = {
    "model", "core", "instructions", "estimated_cycles", "ram_bytes", "arena_bytes", "stack_bytes", "flash_bytes", "code_bytes",
    "accuracy", "equal_outputs", "samples", "compiler",
}  # fmt: skip


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    """Return the rows."""
    mcu.main([*arguments, "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["name"] == "mcu"
    rows: list[dict[str, Any]] = document["rows"]
    return rows


@pytest.fixture
def own(tmp_path: Path) -> list[str]:
    """Return the options for a network of one's own, with 30 samples."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)).eval()
    program = dsopt.capture(net, (torch.zeros(1, 1, 8, 8),))
    program.save(tmp_path / "tiny.dsoptp")
    (port,) = program.signature.inputs
    values = np.random.default_rng(0).standard_normal((30, 1, 8, 8), dtype=np.float32)
    np.savez(tmp_path / "samples.npz", **{port.name: values})  # type: ignore[arg-type]
    return ["--model", str(tmp_path / "tiny.dsoptp"), "--inputs", str(tmp_path / "samples.npz")]


@pytest.mark.mcu
def test_a_network_of_ones_own_has_every_column(own: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = run(capsys, *own, "--quick", "--core", "cortex-m4")
    assert set(row) >= ISSUED
    assert (row["model"], row["core"], row["samples"], row["equal_outputs"]) == ("tiny", "cortex-m4", 20, True)
    assert row["instructions"] < row["estimated_cycles"] < 3 * row["instructions"]
    assert row["arena_bytes"] + row["stack_bytes"] <= row["ram_bytes"]
    assert 0 < row["code_bytes"] < row["flash_bytes"]
    assert (
        row["accuracy"]
        is row["float_accuracy"]
        is row["peer_instructions"]
        is row["instructions_ratio"]
        is row["patches"]
        is None
    )


@needs_qemu
@pytest.mark.mcu
def test_a_cortex_m55_has_instructions_and_no_estimate(own: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = run(capsys, *own, "--samples", "2", "--core", "cortex-m55")
    assert row["instructions"] > 0
    assert row["estimated_cycles"] is None
    assert row["equal_outputs"] is True


@pytest.mark.mcu
def test_a_stream_keeps_its_state_and_ram_is_limited(capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = run(capsys, "--models", "lstm", "--samples", "3", "--core", "cortex-m0plus", "--ram", "4K")
    assert (row["equal_outputs"], row["samples"]) == (True, 3)
    assert row["ram_bytes"] <= 4096
    with pytest.raises(dsopt.DsoptError, match="DS0601"):
        mcu.main(["--models", "lstm", "--samples", "1", "--ram", "1K"])


def test_unknown_names_and_halves_of_pairs_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["--models", "ad,resnet"], "--models has no 'resnet'; known: ad, ic, kws, vww, bert"),
        (["--models", "kws"], "ic and kws need --assets"),
        (["--model", "a.pt2"], "--model and --inputs belong together"),
        (["--inputs", "a.npz"], "--model and --inputs belong together"),
    ):
        with pytest.raises(SystemExit):
            mcu.main(arguments)
        assert words in capsys.readouterr().err


def test_ratios_are_ours_over_the_peers() -> None:
    row = {
        "model": "kws",
        "core": "cortex-m4",
        "instructions": 3_850_618,
        "estimated_cycles": None,
        "arena_bytes": 11_410,
    }
    found = mcu._against_peer({**row, "flash_bytes": 54_300})
    assert (found["peer_instructions"], found["instructions_ratio"]) == (7_701_236, 0.5)
    assert (found["arena_bytes_ratio"], found["flash_bytes_ratio"]) == (0.5, 0.5)
    assert (found["peer_estimated_cycles"], found["estimated_cycles_ratio"]) == (9_300_000, None)
    other = mcu._against_peer({**row, "flash_bytes": 1, "core": "cortex-m55"})
    assert (other["peer_flash_bytes"], other["flash_bytes_ratio"]) == (None, None)
    assert set(mcu._against_peer({**row, "model": "bert", "flash_bytes": 1}).values()) == {None}


def test_samples_that_did_not_calibrate_come_first() -> None:
    subject = mcu_models.Subject(dsopt.capture(nn.ReLU(), (torch.zeros(1, 2),)), {"x": np.zeros((6, 2))}, calibration=4)
    assert subject.numbers(10) == [4, 5, 0, 1, 2, 3]
    assert subject.numbers(1) == [4]
    assert mcu_models.Subject(subject.program, subject.samples, calibration=9).numbers(2) == [0, 1]


def test_the_peers_are_the_networks_of_mlperf_tiny() -> None:
    assert set(mcu.PEERS) == {(name, core) for name in mcu_models.TINY for core in ("cortex-m4", "cortex-m55")}
    assert set(mcu_models.TINY) <= set(mcu_models.MODELS)
