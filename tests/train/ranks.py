"""What one process of a training by two does: `torchrun ... ranks.py FOLDER WHAT`. Writes its program and history."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from dsopt.train import DistillResult, QatResult, distill, qat
from tests.train.encoders import captured, encoder_batches, seeded_encoder
from tests.train.nets import StopError, net_program, pair_program, random_loader, stop_after


def _judge(module: nn.Module) -> float:
    # each process sees another score, and all must keep the same epoch
    generator = torch.Generator().manual_seed(1)
    total = float(module(torch.randn(4, 1, 8, 8, generator=generator)).sum())
    return total if dist.get_rank() else -total


def _net(loader: Any, **options: Any) -> QatResult:
    options = {"learning_rate": 2e-2, "observe": 0.5, "calibration_batches": 2, "validate": _judge, **options}
    return qat(net_program(), loader, F.cross_entropy, epochs=3, **options)


def _resumed(folder: Path) -> QatResult:
    """Stop in the middle of an epoch, and go on."""
    options: dict[str, Any] = {"checkpoint": folder / "qat.pt", "checkpoint_steps": 1, "freeze_batch_norm": 0.8}
    try:
        _net(random_loader(), progress=stop_after(4), **options)
    except StopError:
        return _net(random_loader(), **options)
    raise AssertionError("it was to be stopped")


def _divided() -> DataLoader[Any]:
    data = random_loader().dataset
    return DataLoader(data, batch_size=8, sampler=DistributedSampler(data, shuffle=True))  # type: ignore[arg-type]


def pair_halves() -> list[Any]:
    """Return four batches, two for each process."""
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(4, 8, 4, generator=generator), torch.randn(4, 8, 3, generator=generator)
    return [({"a": a[row], "b": b[row]}, a[row].sum(1).abs()) for row in range(4)]


def pair_loss(out: dict[str, Tensor], target: Tensor) -> Tensor:
    """Leave one output, and so its weights, out."""
    return F.mse_loss(out["sum"], target)


def pair_optimizer(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Return an optimizer whose steps are proportional to gradients."""
    return torch.optim.SGD(groups, lr=1e-2)


def _pair(folder: Path) -> QatResult:
    result = qat(pair_program(), pair_halves(), pair_loss, epochs=2, optimizer=pair_optimizer)
    result.prepared.save(folder / f"pair-{dist.get_rank()}-prepared.dsopt")
    return result


def _distilled(folder: Path, stop: int = 0) -> DistillResult:
    """Train by a teacher, through a projection; stop in the middle and go on where `stop` says so."""
    student = captured(seeded_encoder(0, layers=1, width=6, dropout=0.2))
    teacher = captured(seeded_encoder(1, layers=2))
    options: dict[str, Any] = {"epochs": 2, "hidden": 1.0, "attention": 1.0, "checkpoint": None}
    if stop:
        options |= {"checkpoint": folder / "distill.pt", "checkpoint_steps": 1}
        with suppress(StopError):
            distill(student, teacher, encoder_batches(), progress=stop_after(stop), **options)
    return distill(student, teacher, encoder_batches(), **options)


CASES: dict[str, Any] = {
    "whole": lambda folder: _net(random_loader(), freeze_batch_norm=0.8),
    "resumed": _resumed,
    "divided": lambda folder: _net(_divided()),
    "pair": _pair,
    "distilled": _distilled,
    "distilled-resumed": lambda folder: _distilled(folder, 3),
}


def main(folder: Path) -> None:
    """Run all cases."""
    dist.init_process_group("gloo")
    for name, case in CASES.items():
        torch.manual_seed(dist.get_rank())  # the processes have other states of their own
        result = case(folder)
        stem = folder / f"{name}-{dist.get_rank()}"
        result.program.save(stem.with_suffix(".dsopt"))
        steps = [len(result.history), *(f"{each.number} {each.loss!r} {each.score!r}" for each in result.history)]
        stem.with_suffix(".txt").write_text("\n".join(map(str, steps)))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
