"""A training loop that can be stopped and gone on with: epochs, schedule, checkpoints, seeds, several processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dsopt.errors import CheckError, UsageError
from dsopt.train.checkpoint import load_checkpoint, save_checkpoint
from dsopt.train.data import mixed_seed, seeded, to_device
from dsopt.train.processes import Processes
from dsopt.train.progress import Progress

Loss = Callable[..., Tensor]
"""(outputs, target) -> a scalar; with a teacher (outputs, target, the teacher's outputs)."""


class Part(Protocol):
    """What a checkpoint can hold beside the module and the optimizer."""

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain numbers."""

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Go on from them."""


@dataclass(frozen=True)
class LoopOptions:
    """How to train. checkpoint: a file that is written after each epoch and every `checkpoint_steps`, and gone on from if it is there.

    signature: what the training is, so that a checkpoint of another one is not taken.  patience: how many epochs in a row may pass
    without a better score before training ends early; 0 trains all of them.
    """

    epochs: int
    seed: int
    checkpoint: Path | None = None
    checkpoint_steps: int = 0
    signature: str = ""
    patience: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass
class Epoch:
    """What one epoch came to. score: of `validate`, None without."""

    number: int
    loss: float
    score: float | None = None


@dataclass
class _Place:
    """Where a training stands: steps done of an epoch, and the sum of their losses in this process."""

    epoch: int = 0
    step: int = 0
    total: float = 0.0


@dataclass
class Loop:
    """One training. parts: what a checkpoint holds beside the module and the optimizer, by name.

    before_step, after_step: hooks, told the steps done and in all; validate: the score of the module after an epoch.
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
    parts: dict[str, Part] = field(default_factory=dict)
    best: tuple[float, dict[str, Tensor]] | None = None
    history: list[Epoch] = field(default_factory=list)

    def run(self, progress: Progress) -> None:
        """Train all epochs, from a checkpoint on if there is one. Raises CheckError if the loss is no number."""
        if isinstance(self.loader, Iterator):
            raise UsageError(
                "DS0366", "the loader can be iterated only once", fix="give a list or a DataLoader, which begins again each epoch"
            )  # fmt: skip
        trained = self.processes.wrap(self.module)
        steps = self.processes.share_length(self.loader)
        if steps == 0:
            raise UsageError(
                "DS0366",
                f"the loader gives no batch to each of {self.processes.count} processes",
                fix="let it give (inputs, target) at least once for each process",
            )
        schedule = cosine_schedule(self.optimizer, steps * self.options.epochs)
        place = self._resume(schedule, steps)
        while place.epoch < self.options.epochs and not self._is_stale():
            with closing(self._batches(place.epoch)) as batches:
                self._run_epoch(trained, batches, schedule, place, steps, progress)
            self._finish_epoch(place)
            place = _Place(place.epoch + 1)
            self._save(schedule, place, steps)

    def _run_epoch(
        self,
        trained: nn.Module,
        batches: Iterator[tuple[int, Any]],
        schedule: Any,
        place: _Place,
        steps: int,
        progress: Progress,
    ) -> None:
        every, in_all = self.options.checkpoint_steps, steps * self.options.epochs
        self.module.train()
        for number, batch in batches:
            if number < place.step:
                continue
            done = place.epoch * steps + number
            # a step is seeded by itself, so that one that is gone on with is the same as one that never stopped
            torch.manual_seed(mixed_seed(self.options.seed, place.epoch, number, self.processes.rank))
            self.before_step(done, in_all)
            place.total += self._step(trained, batch, f"step {done} of epoch {place.epoch}")
            place.step = number + 1
            schedule.step()
            self.after_step(done + 1, in_all)
            progress(done + 1, in_all, f"epoch {place.epoch + 1}, loss {place.total / place.step:.4f}")
            if every and place.step % every == 0:
                self._save(schedule, place, steps)

    def _batches(self, epoch: int) -> Generator[tuple[int, Any], None, None]:
        """Yield the batches of an epoch, each drawn with a seed of its own, alike in all processes."""
        self.processes.begin_epoch(self.loader, epoch)
        with seeded(mixed_seed(self.options.seed, epoch), self.loader):
            batches = enumerate(self.processes.share(self.loader))
            found = next(batches, None)
            while found is not None:
                yield found
                torch.manual_seed(mixed_seed(self.options.seed, epoch, found[0] + 1))
                found = next(batches, None)

    def _step(self, trained: nn.Module, batch: Any, where: str) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.step_loss(trained, to_device(batch, self.options.device))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise CheckError(
                "DS0363", f"the loss is {value} at {where}", fix="lower the learning rate, or mend the data"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return value

    def _is_stale(self) -> bool:
        """Tell whether the last `patience` epochs were no better than the best before them."""
        patience = self.options.patience
        if not patience or self.best is None:
            return False
        reached = next(number for number, each in enumerate(self.history, start=1) if _equal(each.score, self.best[0]))
        return len(self.history) - reached >= patience

    def _finish_epoch(self, place: _Place) -> None:
        self.processes.align(self.module)
        score = None
        if self.validate is not None:
            self.module.eval()
            with torch.no_grad():
                score = self.processes.mean(float(self.validate(self.module)))
            if self.best is None or score > self.best[0] or math.isnan(self.best[0]):
                self.best = score, {name: value.detach().clone() for name, value in self.module.state_dict().items()}
        self.history.append(Epoch(place.epoch, self.processes.mean(place.total / max(place.step, 1)), score))

    # ---- checkpoints ----

    def _signature(self, steps: int) -> str:
        return f"{self.options.signature}, {steps} steps an epoch in {self.processes.count} processes"

    def _save(self, schedule: Any, place: _Place, steps: int) -> None:
        if self.options.checkpoint is None:
            return
        totals = self.processes.gather(place.total)
        if not self.processes.is_first:
            return
        save_checkpoint(
            self.options.checkpoint,
            {
                "signature": self._signature(steps), "epoch": place.epoch, "step": place.step, "totals": totals,
                "module": self.module.state_dict(), "optimizer": self.optimizer.state_dict(), "schedule": schedule.state_dict(),
                "parts": {name: part.state_dict() for name, part in sorted(self.parts.items())},
                "history": [[each.number, each.loss, each.score] for each in self.history],
                "best": None if self.best is None else [self.best[0], self.best[1]],
            },
        )  # fmt: skip

    def _resume(self, schedule: Any, steps: int) -> _Place:
        if self.options.checkpoint is None:
            return _Place()
        path, is_first = self.options.checkpoint, self.processes.is_first
        found = self.processes.of_first(load_checkpoint(path, self._signature(steps)) if is_first else None)
        if found is None:
            return _Place()
        self.module.load_state_dict(found["module"])
        self.optimizer.load_state_dict(found["optimizer"])
        schedule.load_state_dict(found["schedule"])
        for name, part in self.parts.items():
            part.load_state_dict(found["parts"][name])
        self.history = [Epoch(int(number), float(loss), score) for number, loss, score in found["history"]]
        self.best = None if found["best"] is None else (found["best"][0], found["best"][1])
        return _Place(int(found["epoch"]), int(found["step"]), float(found["totals"][self.processes.rank]))


def _equal(score: float | None, best: float) -> bool:
    return score is not None and (score == best or (math.isnan(score) and math.isnan(best)))


def cosine_schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Let learning rates rise over the first twentieth of the steps, and fall to 0 along a cosine (Loshchilov and Hutter 2017)."""
    warmup = max(steps // 20, 1)

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, share)
