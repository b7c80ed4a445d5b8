"""The trainings of one seed, each kept in a folder if there is one, so that a stopped run goes on where it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.nn.functional import cross_entropy

from benchmarks.distill.nets import Batches, Scale, bag_of_words, encoder, grown
from benchmarks.harness import progress
from benchmarks.kept import kept
from dsopt import PassManager, Program, parse_pipeline
from dsopt.train import distill, qat, student, taught_loss
from models.sentiment import Sst2

FIRST, TEACHER, STUDENT, PRUNED, INT8, FINAL = "first", "teacher", "student", "pruned", "int8", "final"
WITHOUT_TEACHER, ONE_LAYER, BAG = "student without teacher", "1 layer", "bag of words"
INT8_ALONE, PRUNED_ALONE = "int8 alone", "pruned alone"

TEACHING: dict[str, float] = {"labels": 0.3, "logits": 0.7, "hidden": 0.1, "attention": 1.0, "temperature": 2.0}


@dataclass(frozen=True)
class Recipe:
    """How long each is trained, and at which learning rates. first: the small net that the teacher is grown from."""

    first_epochs: int
    teacher_epochs: int
    student_epochs: int
    pruned_epochs: int
    int8_epochs: int
    learning_rate: float = 5e-4
    int8_learning_rate: float = 3e-5
    weight_decay: float = 0.3


FULL_RECIPE = Recipe(4, 2, 2, 1, 1)
QUICK_RECIPE = Recipe(1, 1, 2, 1, 1, learning_rate=2e-3)


@dataclass(frozen=True)
class Run:
    """One seed. folder: what keeps programs and checkpoints, None for nothing."""

    data: Sst2
    scale: Scale
    recipe: Recipe
    seed: int
    device: str
    folder: Path | None

    def programs(self) -> dict[str, Program]:
        """Train all stages, and what they are compared with; what takes longest and proves least, with seed 0 only."""
        scale, seed, recipe = self.scale, self.seed, self.recipe
        all_epochs = recipe.first_epochs + recipe.student_epochs
        first = self._alone(FIRST, lambda: encoder(scale, scale.layers // scale.every, seed), recipe.first_epochs)
        teacher = self._alone(TEACHER, lambda: grown(first, scale, seed), recipe.teacher_epochs)
        small = self._taught(STUDENT, lambda: student(teacher, keep_every=scale.every), teacher, recipe.student_epochs)
        narrow = self._taught(PRUNED, lambda: pruned(small, scale), teacher, recipe.pruned_epochs)
        programs = {
            TEACHER: teacher, STUDENT: small, PRUNED: narrow,
            INT8: self._rounded(INT8, small, teacher), FINAL: self._rounded(FINAL, narrow, teacher),
            WITHOUT_TEACHER: self._alone(WITHOUT_TEACHER, lambda: first, recipe.student_epochs),
            ONE_LAYER: self._alone(ONE_LAYER, lambda: encoder(scale, 1, seed), 2 * all_epochs),
            BAG: self._alone(BAG, lambda: bag_of_words(scale), 2 * all_epochs, rate=1e-2),
        }  # fmt: skip
        if seed == 0:
            programs[INT8_ALONE] = self._rounded(INT8_ALONE, teacher, teacher)
            programs[PRUNED_ALONE] = self._taught(
                PRUNED_ALONE, lambda: pruned(teacher, scale), teacher, recipe.pruned_epochs
            )
        return programs

    def _alone(self, name: str, make: Callable[[], Program], epochs: int, rate: float | None = None) -> Program:
        """Train on labels."""

        def train(checkpoint: Path | None) -> Program:
            return distill(
                make(), None, Batches(self.data), epochs=epochs, labels=1.0, logits=0.0, **self._options(checkpoint, rate)
            ).program  # fmt: skip

        return self._kept(name, train)

    def _taught(self, name: str, make: Callable[[], Program], teacher: Program, epochs: int) -> Program:
        """Train by the teacher."""

        def train(checkpoint: Path | None) -> Program:
            return distill(
                make(), teacher, Batches(self.data), epochs=epochs, **TEACHING, **self._options(checkpoint)
            ).program  # fmt: skip

        return self._kept(name, train)

    def _rounded(self, name: str, program: Program, teacher: Program) -> Program:
        """Train with quantisation, by the teacher's logits too."""
        loss = taught_loss(program.signature.output_tree, labels=0.3, logits=0.7, temperature=2.0, loss=cross_entropy)

        def train(checkpoint: Path | None) -> Program:
            options = self._options(checkpoint, self.recipe.int8_learning_rate)
            return qat(
                program, Batches(self.data), loss, epochs=self.recipe.int8_epochs, teacher=teacher, **options
            ).program

        return self._kept(name, train)

    def _options(self, checkpoint: Path | None, rate: float | None = None) -> dict[str, Any]:
        return {
            "learning_rate": rate or self.recipe.learning_rate, "weight_decay": self.recipe.weight_decay,
            "checkpoint": checkpoint, "checkpoint_steps": 20, "seed": self.seed, "device": self.device,
        }  # fmt: skip

    def _kept(self, name: str, train: Callable[[Path | None], Program]) -> Program:
        progress(f"seed {self.seed}: {name}")
        return kept(self.folder, f"{self.seed}-{name.replace(' ', '-')}", train)


def pruned(program: Program, scale: Scale) -> Program:
    """Return a narrower program."""
    return PassManager(parse_pipeline(scale.prune)).run(program)[0]
