"""distill: train a program, the student, by another one that does the same better, the teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dsopt.errors import UsageError
from dsopt.ir import Program
from dsopt.ir.trainable import ProgramModule
from dsopt.train.checkpoint import digest
from dsopt.train.data import call, mixed_seed, named_inputs, seeded, split_batch
from dsopt.train.distill_loss import Teaching, task_loss
from dsopt.train.loop import Epoch, Loop, LoopOptions, Loss
from dsopt.train.optimizers import OptimizerFactory, make_optimizer, parameter_groups
from dsopt.train.points import (
    Point,
    attention_maps,
    channel_axis,
    check_attention,
    match_layers,
    match_modules,
    same_heads,
)
from dsopt.train.processes import Processes
from dsopt.train.progress import Progress, progress_bar

Pairs = Sequence[tuple[Point, Point]]


@dataclass(frozen=True)
class DistillResult:
    """program: the student with what it learned.  history: of the epochs.  pairs: what was compared, (student's, teacher's) modules."""

    program: Program
    history: tuple[Epoch, ...]
    pairs: tuple[tuple[str, str], ...]


def distill(
    student: Program,
    teacher: Program | None,
    loader: Iterable[Any],
    loss: Loss | None = None,
    *,
    epochs: int,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    optimizer: OptimizerFactory | None = None,
    labels: float = 0.5,
    logits: float = 0.5,
    hidden: float = 0.0,
    attention: float = 0.0,
    temperature: float = 2.0,
    pairs: Sequence[tuple[str, str]] | None = None,
    validate: Callable[[nn.Module], float] | None = None,
    patience: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_steps: int = 0,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> DistillResult:
    """Train a student on labels and on what its teacher makes of the same inputs (Hinton et al. 2015; Jiao et al. 2020, "TinyBERT").

    student: any float program that takes what the teacher takes; `dsopt.train.student` makes one of it, `prune` a narrower one.
    teacher: runs in eval mode; None trains on labels alone, if the other weights are 0.  loader: gives (inputs, target) and can be
    iterated again for each epoch; inputs are a tensor, a tuple or {argument: tensor}; the target is not read where labels=0.
    loss(outputs, target): in the place of cross-entropy on the first output (mean squares where the target is float).
    labels, logits, hidden, attention: how much each part weighs.  logits: T^2 KL of softmax(logits / T) at T=`temperature`.  hidden: mean
    squares between what layers give, through a learned projection where their widths differ, which is dropped afterwards.  attention:
    mean squares between softmax(q k^T), the mean over heads where their numbers differ.
    pairs: modules to compare, (the student's, the teacher's); by default each layer of the student with the last of its share of the
    teacher's.  validate(module): a score after each epoch, of which the best is kept; the mean over all processes.  patience: end after
    so many epochs without a better score; 0 trains all.  checkpoint: a file to go on from after a stop, written after each epoch and every
    `checkpoint_steps`.  optimizer: makes one from parameter groups; else AdamW with `learning_rate` over a warm-up and a cosine.
    The student's dropout and batch norms train as the user wrote them. The same seed gives the same program. Under torchrun each process
    takes its share of the batches.

    Raises UsageError for weights, pairs or data that do not fit, CheckError if the loss is no number.
    """
    teaching = Teaching(labels, logits, hidden, attention, temperature)
    if teaching.needs_teacher and teacher is None:
        raise UsageError(
            "DS0378", "there is no teacher", fix="give one, or weights of 0 to logits, hidden and attention"
        )
    if patience and validate is None:
        raise UsageError("DS0378", "patience needs scores", fix="give validate, or leave patience out")
    where = torch.device(device)
    processes = Processes.join(where)
    compared = _compared(student, teacher, teaching, pairs)
    learner = _Learner(student, teacher, teaching, compared, mixed_seed(seed, -2)).to(where)
    guide = (
        _Watched(teacher, [other for _, other in compared], teaching).to(where)
        if teacher and teaching.needs_teacher
        else None
    )
    made = make_optimizer(parameter_groups(dict(learner.named_parameters()), weight_decay), learning_rate, optimizer)
    names = tuple((one.name, other.name) for one, other in compared)
    options = LoopOptions(
        epochs, seed, None if checkpoint is None else Path(checkpoint), checkpoint_steps,
        f"distill{{{teaching}}} of weights {digest(learner)} by {type(made).__name__}, seed {seed}, {epochs} epochs, "
        f"rate {learning_rate:g}, decay {weight_decay:g}, pairs {names}",
        patience, where,
    )  # fmt: skip
    task = task_loss(student.signature.output_tree, teaching, loss)
    _check_inputs(student, loader, seed)

    def step_loss(trained: nn.Module, batch: Any) -> Tensor:
        inputs, target = split_batch(batch)
        with torch.no_grad():
            wanted, *places = (None, [], []) if guide is None else guide(inputs)
        outputs, projected, maps = trained(inputs)
        parts = [task(outputs, target, wanted)]
        parts += [teaching.hidden * _mean_squares(projected, places[0])] if teaching.hidden else []
        parts += [teaching.attention * _mean_squares(maps, places[1])] if teaching.attention else []
        return sum(parts[1:], parts[0])

    judge = None if validate is None else lambda module: validate(module.student.module)
    loop = Loop(learner, loader, step_loss, made, options, processes, validate=judge)
    with progress_bar(progress is None and processes.is_first) as bar:
        loop.run(progress or bar)
    if loop.best is not None:
        learner.load_state_dict(loop.best[1])
    trained = student.with_weights(learner.student.module.eval().cpu())
    return DistillResult(trained, tuple(loop.history), names)


class _Watched(nn.Module):
    """A program that gives its outputs, and what it had at the points: hidden values, and maps of attention."""

    def __init__(self, program: Program, points: Sequence[Point], teaching: Teaching) -> None:
        super().__init__()
        self.module = ProgramModule(program)
        self._points, self._has = points, (bool(teaching.hidden), bool(teaching.attention))
        self._names = set().union(*(point.watched(*self._has) for point in points))

    def forward(self, inputs: Any) -> tuple[Any, list[Tensor], list[Tensor]]:
        """Call the program as a loader's inputs say."""
        values: dict[str, Tensor] = {}

        def watch(node: fx.Node, value: Any) -> None:
            if node.name in self._names:
                values[node.name] = value

        self.module.watch = watch
        try:
            outputs = call(self.module, inputs)
        finally:
            self.module.watch = None
        hidden = [values[point.hidden.name] for point in self._points] if self._has[0] else []
        maps = [each for point in self._points for each in attention_maps(point, values)] if self._has[1] else []
        return outputs, hidden, maps


class _Learner(nn.Module):
    """A student with the projections of its hidden values to the teacher's widths."""

    def __init__(self, student: Program, teacher: Program | None, teaching: Teaching, pairs: Pairs, seed: int) -> None:
        super().__init__()
        self.student = _Watched(student, [one for one, _ in pairs], teaching)
        self.projections = nn.ModuleDict()
        self._axes: dict[str, int] = {}
        if teaching.hidden and teacher is not None:
            with seeded(seed):
                for number, (one, other) in enumerate(pairs):
                    self._add(
                        str(number), one.hidden.meta["val"], other.hidden, channel_axis(student, teacher, one, other)
                    )

    def _add(self, key: str, mine: Tensor, theirs: fx.Node, axis: int | None) -> None:
        if axis is None:
            return
        self._axes[key] = axis
        sizes = int(mine.shape[axis]), int(theirs.meta["val"].shape[axis])
        self.projections[key] = nn.Linear(*sizes, bias=False, dtype=mine.dtype)

    def forward(self, inputs: Any) -> tuple[Any, list[Tensor], list[Tensor]]:
        """Return outputs, hidden values of the teacher's widths, and maps of attention."""
        outputs, hidden, maps = self.student(inputs)
        for key, axis in self._axes.items():
            value = hidden[int(key)].movedim(axis, -1)
            hidden[int(key)] = self.projections[key](value).movedim(-1, axis)
        return outputs, hidden, maps


def _mean_squares(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Return the mean over pairs of their mean squared difference."""
    compared = [same_heads(one, other.to(one.dtype)) for one, other in zip(mine, theirs, strict=True)]
    return torch.stack([F.mse_loss(one, other) for one, other in compared]).mean()


def _compared(student: Program, teacher: Program | None, teaching: Teaching, pairs: Any) -> list[tuple[Point, Point]]:
    if teacher is None or not (teaching.hidden or teaching.attention):
        return []
    found = match_layers(student, teacher) if pairs is None else match_modules(student, teacher, pairs)
    if teaching.attention:
        check_attention(found)
    return found


def _check_inputs(student: Program, loader: Iterable[Any], seed: int) -> None:
    """Refuse what the student cannot be called with before anything is trained."""
    with seeded(mixed_seed(seed, -1), loader):
        first = next(iter(loader), None)
    if first is not None:
        named_inputs(student, split_batch(first)[0])
