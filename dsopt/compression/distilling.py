"""One distillation from data in files or arrays: what `dsopt distill` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dsopt.accuracy.samples import CALIBRATION_SAMPLES, LABELS, read_samples
from dsopt.compression.composition import no_progress
from dsopt.compression.data import Data, read_training
from dsopt.compression.score import Scorer
from dsopt.compression.stages import Progress, check_labels, run_passes
from dsopt.errors import UsageError
from dsopt.ir import Program
from dsopt.measure.inspect import inspect
from dsopt.passes.base import Pass, count_weight_bytes, parse_pipeline
from dsopt.target import parse_target
from dsopt.train import DistillResult, distill, student
from dsopt.train.distill_loss import Teaching


@dataclass(frozen=True)
class Distilled:
    """What a distillation came to. result: of the training.  scores: {"teacher", "before", "after"} by `metric`; {} without held-out data.

    parameters, weight_bytes: of the teacher and of the student.
    """

    result: DistillResult
    metric: str
    scores: Mapping[str, float]
    parameters: tuple[int, int]
    weight_bytes: tuple[int, int]

    def as_dict(self) -> dict[str, Any]:
        """Return everything but programs as plain values."""
        history = [{"epoch": each.number + 1, "loss": each.loss, "score": each.score} for each in self.result.history]
        return {
            "metric": self.metric or None, "scores": dict(self.scores), "parameters": list(self.parameters),
            "weight_bytes": list(self.weight_bytes), "history": history, "pairs": [list(pair) for pair in self.result.pairs],
        }  # fmt: skip


def distill_from(
    teacher: Program,
    data: Data,
    *,
    begin: Program | None = None,
    every: int | None = None,
    blocks: Sequence[str] = (),
    passes: str = "",
    teaching: Teaching | None = None,
    validation: str | Path | Mapping[str, Any] | None = None,
    labels: str = LABELS,
    metric: str | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress = no_progress,
    **options: Any,
) -> Distilled:
    """Make a student and train it by its teacher.

    begin: the student as a program of its own; else every `every`-th layer of the teacher, or the named `blocks`, or the teacher itself.
    passes: run on it before, as "prune{ratio=0.5}", with data for calibration.  data, validation, labels, metric, batch_size: as
    `compress` takes them.  options: of `dsopt.train.distill`.
    Raises UsageError where no student is named, and what `distill` raises.
    """
    teaching = teaching or Teaching()
    pipeline = parse_pipeline(passes)
    _check_student(begin, every, blocks, pipeline)
    training = read_training(teacher, data, labels, batch_size, CALIBRATION_SAMPLES, seed)
    check_labels(teaching.labels, training)
    learner = _student(teacher, begin, every, blocks)
    if pipeline:
        learner = run_passes(pipeline, learner, training, parse_target("cpu"), seed, progress)
    held = None if validation is None else read_samples(teacher, validation, labels)
    scorer = None if held is None else Scorer(teacher, held, metric)
    before = scorer.of_program(learner) if scorer else None
    result = distill(
        learner, teacher if teaching.needs_teacher else None, training.loader, labels=teaching.labels, logits=teaching.logits,
        hidden=teaching.hidden, attention=teaching.attention, temperature=teaching.temperature,
        validate=scorer.of_module if scorer else None, seed=seed, progress=progress, **options,
    )  # fmt: skip
    if scorer is not None and not scorer.metric.higher_is_better:  # training took its negative
        result = replace(result, history=tuple(replace(each, score=-(each.score or 0.0)) for each in result.history))
    scores: dict[str, float] = {}
    if scorer is not None and before is not None:
        scores = {"teacher": scorer.value, "before": before, "after": scorer.of_program(result.program)}
    both = teacher, result.program
    one, other = (inspect(program).parameters for program in both)
    sizes = count_weight_bytes(teacher), count_weight_bytes(result.program)
    return Distilled(result, scorer.metric.name if scorer else "", scores, (one, other), sizes)


def _check_student(begin: Program | None, every: int | None, blocks: Sequence[str], pipeline: Sequence[Pass]) -> None:
    ways = [begin is not None, every is not None, bool(blocks)]
    if sum(ways) > 1:
        raise UsageError(
            "DS0379", "a student is a program of its own, or made of some layers of the teacher", fix="name one of them"
        )
    if not any(ways) and not pipeline:
        raise UsageError(
            "DS0379", "there is no student",
            fix="name a program, every k-th layer, some layers, or passes that make the teacher smaller",
        )  # fmt: skip


def _student(teacher: Program, begin: Program | None, every: int | None, blocks: Sequence[str]) -> Program:
    if begin is not None:
        return begin
    if every is not None:
        return student(teacher, keep_every=every)
    return student(teacher, blocks=blocks) if blocks else teacher
