"""Metrics: one number for the outputs of a model over all samples.

accuracy    percent of samples whose largest output is the label's
rmse, mae   root of the mean squared, and mean absolute, difference from the labels
agreement   percent of samples whose largest output is the float model's; needs no labels
snr         decibels of the float model's outputs over the difference from them; needs no labels
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dsopt.errors import UsageError

Array = npt.NDArray[Any]

Function = Callable[[Array, Array], float]
"""(outputs of all samples, labels or the float model's outputs) -> number."""


@dataclass(frozen=True)
class Metric:
    """A metric, what it compares with, and what a drop of it is: points, or percent of the float model's value."""

    name: str
    function: Function
    needs_labels: bool
    higher_is_better: bool
    drop_is_relative: bool

    def drop(self, float_value: float, value: float) -> float:
        """Return how much worse `value` is; negative if it is better."""
        worse = float_value - value if self.higher_is_better else value - float_value
        if not self.drop_is_relative:
            return worse
        return 100 * worse / abs(float_value) if float_value else float("inf") if worse > 0 else 0.0

    @property
    def drop_unit(self) -> str:
        """Return what a drop is counted in."""
        return "%" if self.drop_is_relative else "points"


def _accuracy(outputs: Array, labels: Array) -> float:
    """Take the largest of the last axis as the class; a single number is a logit, whose sign tells the class 1 from 0."""
    has_classes = outputs.ndim > 1 and outputs.shape[-1] > 1
    classes = outputs.argmax(-1) if has_classes else (outputs > 0).astype(np.int64)
    return float(100 * np.mean(_shaped(classes, labels, outputs) == labels))


def _difference(outputs: Array, labels: Array) -> Array:
    result: Array = _shaped(outputs.astype(np.float64), labels, outputs) - labels
    return result


def _shaped(values: Array, labels: Array, outputs: Array) -> Array:
    if values.size != labels.size:
        raise UsageError(
            "DS0347", f"labels of shape {list(labels.shape)} do not fit outputs of shape {list(outputs.shape)}",
            fix="accuracy takes a class for each row of the outputs; rmse and mae take a number for each number of them",
        )  # fmt: skip
    return values.reshape(labels.shape)


def _agreement(outputs: Array, reference: Array) -> float:
    return float(100 * np.mean(outputs.argmax(-1) == reference.argmax(-1)))


def signal_to_noise(values: Array, reference: Array) -> float:
    """Return 10 log10 of the power of `reference` over that of the difference, in decibels; 200 where both are equal."""
    noise = float(np.square(values.astype(np.float64) - reference).sum())
    signal = float(np.square(reference.astype(np.float64)).sum())
    if noise == 0:
        return 200.0
    return float(10 * np.log10(signal / noise)) if signal > 0 else -200.0


METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", _accuracy, True, True, False),
        Metric(
            "rmse",
            lambda outputs, labels: float(np.sqrt(np.mean(_difference(outputs, labels) ** 2))),
            True,
            False,
            True,
        ),
        Metric("mae", lambda outputs, labels: float(np.mean(np.abs(_difference(outputs, labels)))), True, False, True),
        Metric("agreement", _agreement, False, True, False),
        Metric("snr", signal_to_noise, False, True, False),
    )
}
"""Metrics by name."""


def find_metric(metric: str | Function | Metric) -> Metric:
    """Return a metric by its name, or a function of (outputs, labels) whose larger values are better.

    Raises UsageError naming the known ones.
    """
    if isinstance(metric, Metric):
        return metric
    if callable(metric):
        return Metric(getattr(metric, "__name__", "metric"), metric, True, True, False)
    if metric not in METRICS:
        raise UsageError("DS0341", f"unknown metric {metric!r}", fix="known metrics: " + ", ".join(METRICS))
    return METRICS[metric]
