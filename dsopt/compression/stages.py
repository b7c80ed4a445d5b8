"""The stages between a trained program and a small one: any pass, and trainings by their name and options as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from dsopt.compression.data import Training
from dsopt.errors import UsageError
from dsopt.ir import Program
from dsopt.passes import PASSES
from dsopt.passes.base import Pass, PassContext, PassManager, make_pass, make_step, pipeline_text, read_pipeline
from dsopt.target import Target
from dsopt.train import distill, qat
from dsopt.train.distill_loss import Teaching, task_loss
from dsopt.train.loop import Loss

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Setting:
    """What a stage may know beside the program. teacher: the program that all began with."""

    teacher: Program
    training: Training
    target: Target
    seed: int
    checkpoint: Path | None
    device: str
    loss: Loss | None
    validate: Callable[[nn.Module], float] | None
    progress: Progress


class Stage(Protocol):
    """One step of `compress`; `str` of it is the text that makes it again."""

    def check(self, setting: Setting) -> None:
        """Raise UsageError if it cannot run with these data, before anything else does."""

    def run(self, program: Program, setting: Setting) -> Program:
        """Return the program that comes out; the one given is not changed."""


@dataclass(frozen=True)
class PassStage:
    """A pass."""

    step: Pass

    def __str__(self) -> str:
        return str(self.step)

    def check(self, setting: Setting) -> None:
        """Passes say themselves what they need."""

    def run(self, program: Program, setting: Setting) -> Program:
        """Run it with the training data as calibration data."""
        return run_passes((self.step,), program, setting.training, setting.target, setting.seed, setting.progress)


@dataclass(frozen=True)
class Distill:
    """Train the program by the one that all began with: the options of `dsopt.train.distill`."""

    name: ClassVar[str] = "distill"
    epochs: int = 3
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    labels: float = 0.5
    logits: float = 0.5
    hidden: float = 0.0
    attention: float = 0.0
    temperature: float = 2.0
    patience: int = 0

    def __post_init__(self) -> None:
        _check_epochs(self.epochs)
        Teaching(self.labels, self.logits, self.hidden, self.attention, self.temperature)

    def __str__(self) -> str:
        return pipeline_text(self.name, self)

    def check(self, setting: Setting) -> None:
        """Refuse labels and patience that the data do not allow."""
        check_labels(self.labels, setting.training)
        _check_patience(self.patience, setting)

    def run(self, program: Program, setting: Setting) -> Program:
        """Distil."""
        return distill(
            program, setting.teacher, setting.training.loader, setting.loss, epochs=self.epochs,
            learning_rate=self.learning_rate, weight_decay=self.weight_decay, labels=self.labels, logits=self.logits,
            hidden=self.hidden, attention=self.attention, temperature=self.temperature, patience=self.patience,
            **_shared(setting),
        ).program  # fmt: skip


@dataclass(frozen=True)
class FineTune:
    """Train the program on labels alone."""

    name: ClassVar[str] = "fine-tune"
    epochs: int = 3
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    patience: int = 0

    def __post_init__(self) -> None:
        _check_epochs(self.epochs)

    def __str__(self) -> str:
        return pipeline_text(self.name, self)

    def check(self, setting: Setting) -> None:
        """Refuse data without labels, and patience without scores."""
        check_labels(1.0, setting.training)
        _check_patience(self.patience, setting)

    def run(self, program: Program, setting: Setting) -> Program:
        """Train."""
        return distill(
            program, None, setting.training.loader, setting.loss, epochs=self.epochs, learning_rate=self.learning_rate,
            weight_decay=self.weight_decay, labels=1.0, logits=0.0, patience=self.patience, **_shared(setting),
        ).program  # fmt: skip


@dataclass(frozen=True)
class Qat:
    """Train the program with its rounding in it, by labels and by the logits of the program that all began with: `dsopt.train.qat`.

    quantize: options of quantize-prepare, in quotes: quantize='weights=4,keep=head'.
    """

    name: ClassVar[str] = "qat"
    epochs: int = 2
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    labels: float = 0.5
    logits: float = 0.5
    temperature: float = 2.0
    quantize: str = ""

    def __post_init__(self) -> None:
        _check_epochs(self.epochs)
        Teaching(self.labels, self.logits, temperature=self.temperature)
        for name, options in read_pipeline(f"quantize-prepare{{{self.quantize}}}"):
            make_pass(name, options)  # refused before anything is trained

    def __str__(self) -> str:
        return pipeline_text(self.name, self)

    def check(self, setting: Setting) -> None:
        """Refuse labels that the data do not hold."""
        check_labels(self.labels, setting.training)

    def run(self, program: Program, setting: Setting) -> Program:
        """Train with quantisation, and convert."""
        teaching = Teaching(self.labels, self.logits, temperature=self.temperature)
        return qat(
            program, setting.training.loader, task_loss(program.signature.output_tree, teaching, setting.loss),
            epochs=self.epochs, learning_rate=self.learning_rate, weight_decay=self.weight_decay, quantize=self.quantize,
            teacher=setting.teacher if self.logits else None, **_shared(setting),
        ).program  # fmt: skip


STAGES: dict[str, Callable[..., Stage]] = {each.name: each for each in (Distill, FineTune, Qat)}
"""The trainings by name; every pass is a stage, too."""


def parse_stages(stages: str | Sequence[Stage | Pass]) -> tuple[Stage, ...]:
    """Read "prune{ratio=0.5},distill{epochs=3},qat{epochs=2}". Raises UsageError: unknown names are answered with the known ones."""
    if not isinstance(stages, str):
        return tuple(PassStage(each) if isinstance(each, Pass) else each for each in stages)
    found: list[Stage] = []
    for name, options in read_pipeline(stages):
        if name in STAGES:
            found.append(make_step(name, STAGES[name], options, "stage"))
        elif name in PASSES:
            found.append(PassStage(make_pass(name, options)))
        else:
            known = ", ".join([*STAGES, *sorted(PASSES)])
            raise UsageError("DS0302", f"unknown stage {name!r}", fix=f"known stages: {known}")
    return tuple(found)


def run_passes(
    passes: Sequence[Pass], program: Program, training: Training, target: Target, seed: int, progress: Progress
) -> Program:
    """Run passes with the training data as calibration data."""
    batches = tuple({name: torch.from_numpy(array) for name, array in feed.items()} for feed in training.calibration)
    context = PassContext(target, batches, seed=seed, progress=progress)
    return PassManager(tuple(passes)).run(program, context)[0]


def _shared(setting: Setting) -> dict[str, Any]:
    return {
        "validate": setting.validate, "checkpoint": setting.checkpoint, "seed": setting.seed, "device": setting.device,
        "progress": setting.progress,
    }  # fmt: skip


def _check_epochs(epochs: object) -> None:
    if not isinstance(epochs, int) or epochs < 1:
        raise ValueError(f"epochs is {epochs!r} and must be a whole number from 1 on")


def _check_patience(patience: int, setting: Setting) -> None:
    if patience and setting.validate is None:
        raise UsageError(
            "DS0378", f"patience={patience} needs scores", fix="give held-out data as validation, or leave it out"
        )


def check_labels(weight: float, training: Training) -> None:
    """Refuse a training on labels that the data does not hold."""
    if weight and not training.has_labels:
        raise UsageError(
            "DS0378", f"labels weighs {weight:g}, and the data holds no labels",
            fix='add an array "labels" (or name yours with labels=...), or train with labels=0',
        )  # fmt: skip
