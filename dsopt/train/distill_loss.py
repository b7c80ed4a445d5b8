"""What a student is taught by: labels, the teacher's logits, what its layers give, and where its attention looks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from dsopt.errors import UsageError
from dsopt.nesting import Tree, flatten
from dsopt.train.loop import Loss


@dataclass(frozen=True)
class Teaching:
    """How much each part of the loss weighs, 0 to leave it out.

    labels: the user's loss, or cross-entropy (mean squares where labels are no classes).  logits: of the first output, at `temperature`.
    hidden, attention: mean squares, the mean over all pairs of points.
    """

    labels: float = 0.5
    logits: float = 0.5
    hidden: float = 0.0
    attention: float = 0.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        for name in ("labels", "logits", "hidden", "attention"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise UsageError("DS0378", f"{name} is {value!r} and must be a number from 0 on")
        if not isinstance(self.temperature, (int, float)) or not 0 < self.temperature < math.inf:
            raise UsageError("DS0378", f"temperature is {self.temperature!r} and must be a number above 0")
        if not self.labels and not self.needs_teacher:
            raise UsageError(
                "DS0378", "all weights of the loss are 0", fix="give labels, logits, hidden or attention one"
            )

    @property
    def needs_teacher(self) -> bool:
        """Tell whether anything but the labels counts."""
        return bool(self.logits or self.hidden or self.attention)

    def __str__(self) -> str:
        return (
            f"labels={self.labels:g}, logits={self.logits:g}, hidden={self.hidden:g}, attention={self.attention:g}, "
            f"temperature={self.temperature:g}"
        )


def label_loss(outputs: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy of (..., C) logits with (...) int64 classes; mean squared error with a float target.

    A single logit a sample, (...) or (..., 1), with integer labels 0 and 1: the binary cross-entropy.
    """
    if target.is_floating_point():
        return F.mse_loss(outputs.reshape(target.shape), target)
    if outputs.numel() == target.numel():
        return F.binary_cross_entropy_with_logits(outputs.reshape(target.shape), target.to(outputs.dtype))
    return F.cross_entropy(outputs.reshape(-1, outputs.shape[-1]), target.reshape(-1).long())


def logit_loss(outputs: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(softmax(wanted / T) || softmax(outputs / T)) over the last axis, the mean over all others.

    outputs, wanted: (..., C) float.  T^2 keeps gradients as large as those of labels. Hinton et al. 2015, section 2. With a single logit
    a sample, the softmax over it and 0.  Raises UsageError if the shapes differ.
    """
    if outputs.shape != wanted.shape:
        raise UsageError(
            "DS0377", f"the student's first output is {list(outputs.shape)} and the teacher's {list(wanted.shape)}",
            fix="leave logits at 0, or give the student the same outputs",
        )  # fmt: skip
    if outputs.dim() < 2 or outputs.shape[-1] == 1:
        flat, wanted = (F.pad(each.reshape(-1, 1), (0, 1)) for each in (outputs, wanted))
    else:
        flat, wanted = (each.reshape(-1, each.shape[-1]) for each in (outputs, wanted))
    mine, theirs = ((each / temperature).log_softmax(-1) for each in (flat, wanted))
    return temperature**2 * F.kl_div(mine, theirs, reduction="batchmean", log_target=True)


def first_output(tree: Tree) -> Callable[[Any], Tensor]:
    """Return a function that takes the first tensor of nested outputs. tree: of them, as a signature has it."""

    def take(outputs: Any) -> Tensor:
        found: Tensor = next(iter(flatten(tree, outputs, lambda path, wanted, value: None).values()))
        return found

    return take


def taught_loss(
    tree: Tree, *, labels: float = 0.5, logits: float = 0.5, temperature: float = 2.0, loss: Loss | None = None
) -> Loss:
    """Return the loss of labels and logits as (outputs, target, the teacher's outputs) -> a scalar, for `qat(teacher=...)`.

    tree: of the outputs, as `program.signature.output_tree`.  loss(outputs, target): in the place of `label_loss` of the first output.
    Raises UsageError for weights that mean nothing.
    """
    teaching = Teaching(labels, logits, temperature=temperature)
    return task_loss(tree, teaching, loss)


def task_loss(tree: Tree, teaching: Teaching, loss: Loss | None) -> Loss:
    """Return the parts of the loss that are about outputs, as (outputs, target, the teacher's outputs) -> a scalar; 0 without them."""
    first = first_output(tree)

    def total(outputs: Any, target: Any, wanted: Any = None) -> Tensor:
        parts: list[Tensor] = []
        if teaching.labels:
            learned = label_loss(first(outputs), target) if loss is None else loss(outputs, target)
            parts.append(teaching.labels * learned)
        if teaching.logits:
            parts.append(teaching.logits * logit_loss(first(outputs), first(wanted), teaching.temperature))
        return sum(parts[1:], parts[0]) if parts else first(outputs).sum() * 0

    return total
