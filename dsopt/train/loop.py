"""A training loop that can be stopped and gone on with: epochs, schedule, checkpoints, seeds, several processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsopt.errors import CheckError
from dsopt.train.checkpoint import load_checkpoint, save_checkpoint
from dsopt.train.processes import Processes
from dsopt.train.progress import Progress

Loss = Callable[..., Tensor]
"""(outputs, target) -> a scalar; with a teacher (outputs, target, the teacher's outputs)."""


@dataclass(frozen=True)
class LoopOptions:
    """How to train. checkpoint: a file that is written after each epoch and every `checkpoint_steps`, and gone on from if it is there.

    signature: what the training is, so that a checkpoint of another one is not taken.
    """

    epochs: int
    seed: int
    checkpoint: Path | None = None
    checkpoint_steps: int = 0
    signature: str = ""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass
class Epoch:
    """What one epoch came to. score: of `validate`, None without."""

    number: int
    loss: float
    score: float | None = None


@dataclass
class Loop:
    """One training. parts: what a checkpoint holds beside the module and the optimizer, by name, with state_dict and load_state_dict.

    before_step, after_epoch: hooks, told the steps done and in all; validate: the score of the module after an epoch.
    """

    module: nn.Module
    loader: Iterable[Any]
    step_loss: Callable[[nn.Module, Any], Tensor]
    optimizer: torch.optim.Optimizer
    options: LoopOptions
    processes: Processes
    before_step: Callable[[int, int], None] = lambda done, total: None
    after_step: Callable[[int, int], None] = lambda done, total: None
    validate: Callable[[nn.Module], float] | None = None
    best: tuple[float, dict[str, Tensor]] | None = None
    history: list[Epoch] = field(default_factory=list)

    def run(self, progress: Progress) -> None:
        """Train all epochs, from a checkpoint on if there is one. Raises CheckError if the loss is no number."""
        trained = self.processes.wrap(self.module)
        steps = self._count_steps()
        schedule = cosine_schedule(self.optimizer, steps * self.options.epochs)
        epoch, done = self._resume(schedule)
        while epoch < self.options.epochs:
            self._run_epoch(trained, schedule, epoch, done, steps, progress)
            epoch, done = epoch + 1, 0
            self._save(schedule, epoch, 0)

    def _count_steps(self) -> int:
        try:
            length = len(self.loader)  # type: ignore[arg-type]
        except TypeError:
            length = sum(1 for _ in self.loader)
        return max(length // self.processes.count, 1)

    def _run_epoch(
        self, trained: nn.Module, schedule: Any, epoch: int, skip: int, steps: int, progress: Progress
    ) -> None:
        total, count = 0.0, 0
        self.module.train()
        with seeded(self.options.seed + epoch):
            for number, batch in enumerate(self.processes.share(self.loader)):
                done = epoch * steps + number
                if number < skip:
                    continue
                # a step is seeded by itself, so that one that is gone on with is the same as one that never stopped
                torch.manual_seed(
                    (self.options.seed + 1) * 1_000_003 + done * self.processes.count + self.processes.rank
                )
                self.before_step(done, steps * self.options.epochs)
                self.optimizer.zero_grad(set_to_none=True)
                loss = self.step_loss(trained, to_device(batch, self.options.device))
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise CheckError(
                        "DS0363", f"the loss is {value} at step {done} of epoch {epoch}",
                        fix="lower the learning rate, or mend the data",
                    )  # fmt: skip
                loss.backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
                schedule.step()
                self.after_step(done + 1, steps * self.options.epochs)
                total, count = total + value, count + 1
                progress(done + 1, steps * self.options.epochs, f"epoch {epoch + 1}, loss {total / count:.4f}")
                if self.options.checkpoint_steps and (number + 1) % self.options.checkpoint_steps == 0:
                    self._save(schedule, epoch, number + 1)
        self._finish_epoch(epoch, self.processes.mean(total / max(count, 1)))

    def _finish_epoch(self, epoch: int, loss: float) -> None:
        score = None
        if self.validate is not None:
            self.module.eval()
            with torch.no_grad():
                score = self.validate(self.module)
            if self.best is None or score > self.best[0]:
                self.best = score, {name: value.detach().clone() for name, value in self.module.state_dict().items()}
        self.history.append(Epoch(epoch, loss, score))

    # ---- checkpoints ----

    def _save(self, schedule: Any, epoch: int, step: int) -> None:
        if self.options.checkpoint is None or not self.processes.is_first:
            return
        save_checkpoint(
            self.options.checkpoint,
            {
                "signature": self.options.signature, "epoch": epoch, "step": step, "module": self.module.state_dict(),
                "optimizer": self.optimizer.state_dict(), "schedule": schedule.state_dict(),
                "history": [[each.number, each.loss, each.score] for each in self.history],
                "best": None if self.best is None else [self.best[0], self.best[1]],
            },
        )  # fmt: skip

    def _resume(self, schedule: Any) -> tuple[int, int]:
        if self.options.checkpoint is None:
            return 0, 0
        found = load_checkpoint(self.options.checkpoint, self.options.signature)
        if found is None:
            return 0, 0
        self.module.load_state_dict(found["module"])
        self.optimizer.load_state_dict(found["optimizer"])
        schedule.load_state_dict(found["schedule"])
        self.history = [Epoch(int(number), float(loss), score) for number, loss, score in found["history"]]
        self.best = None if found["best"] is None else (found["best"][0], found["best"][1])
        return int(found["epoch"]), int(found["step"])


def cosine_schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Let learning rates rise over the first twentieth of the steps, and fall to 0 along a cosine (Loshchilov and Hutter 2017)."""
    warmup = max(steps // 20, 1)

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, share)


@contextmanager
def seeded(seed: int) -> Any:
    """Seed torch's global generator, from which loaders take their order, and put it back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def to_device(batch: Any, device: torch.device) -> Any:
    """Move every tensor of a nested batch."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch
