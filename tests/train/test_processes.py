"""Two processes train one program, under torchrun as any user would start them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import BatchSampler, DataLoader
from torch.utils.data.distributed import DistributedSampler

from dsopt.ir import Program
from dsopt.train import qat
from dsopt.train.processes import Processes
from tests.train.nets import net_program, pair_program, random_loader, same_weights
from tests.train.ranks import pair_halves, pair_loss, pair_optimizer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "tests.train.ranks",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, str(folder)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def _read(folder: Path, name: str) -> tuple[Program, list[str]]:
    return Program.load(folder / f"{name}.dsopt"), (folder / f"{name}.txt").read_text().splitlines()


@pytest.mark.parametrize("case", ["whole", "resumed", "divided", "pair", "distilled"])
def test_both_processes_end_with_the_same_program(trained: Path, case: str) -> None:
    (first, history), (second, other) = (_read(trained, f"{case}-{rank}") for rank in (0, 1))
    assert same_weights(first, second)
    assert history == other


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("cases", [("resumed", "whole"), ("distilled-resumed", "distilled")])
def test_gone_on_with_is_the_same_as_never_stopped(trained: Path, cases: tuple[str, str], rank: int) -> None:
    (resumed, history), (whole, other) = (_read(trained, f"{case}-{rank}") for case in cases)
    assert same_weights(resumed, whole)
    assert history == other


def test_each_process_takes_its_share_of_the_batches() -> None:
    for count in (1, 2, 3):
        ranks = [Processes(rank, count) for rank in range(count)]
        parts = [list(each.share(range(7))) for each in ranks]
        assert {len(part) for part in parts} == {7 // count}
        assert [each.share_length(range(7)) for each in ranks] == [7 // count] * count
        assert sorted(batch for part in parts for batch in part) == list(range(7 // count * count))


@pytest.mark.parametrize("place", ["sampler", "batch sampler"])
def test_a_loader_that_divides_its_samples_itself_is_taken_whole_and_shuffled_each_epoch(place: str) -> None:
    samples = list(range(12))
    sampler: Any = DistributedSampler(samples, num_replicas=2, rank=1, shuffle=True)  # type: ignore[arg-type]
    loader: DataLoader[Any]
    if place == "sampler":
        loader = DataLoader(samples, batch_size=2, sampler=sampler)  # type: ignore[arg-type]
    else:
        loader = DataLoader(samples, batch_sampler=BatchSampler(sampler, 2, False))  # type: ignore[arg-type]
    processes = Processes(1, 2)
    assert processes.share_length(loader) == 3
    epochs = []
    for epoch in (0, 1, 0):
        processes.begin_epoch(loader, epoch)
        epochs.append(torch.cat(list(processes.share(loader))).tolist())
    assert len(epochs[0]) == 6
    assert epochs[0] == epochs[2] != epochs[1]


def test_two_processes_step_as_one_with_both_batches_does(trained: Path) -> None:
    halves = pair_halves()
    joined = [
        ({key: torch.cat([one[0][key], two[0][key]]) for key in ("a", "b")}, torch.cat([one[1], two[1]]))
        for one, two in zip(halves[::2], halves[1::2], strict=True)
    ]
    prepared = qat(pair_program(), halves, pair_loss, epochs=0).prepared
    alone = qat(prepared, joined, pair_loss, epochs=2, optimizer=pair_optimizer).prepared
    both = Program.load(trained / "pair-0-prepared.dsopt")
    for name, value in alone.weights.items():  # sums of gradients in another order
        torch.testing.assert_close(both.weights[name], value, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(alone.weights["left.weight"], pair_program().weights["left.weight"], rtol=1e-5, atol=1e-6)


def test_alone_nothing_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert Processes.join(torch.device("cpu")) == Processes()
    result = qat(net_program(), random_loader(), F.cross_entropy, epochs=1)
    assert not torch.distributed.is_initialized()
    assert len(result.history) == 1
