"""Judge a model and the code made of it on the same samples by one metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dsopt.accuracy.metrics import Metric
from dsopt.accuracy.samples import Samples
from dsopt.accuracy.sensitivity import LayerSensitivity
from dsopt.errors import CheckError, UsageError
from dsopt.feeds import Feed
from dsopt.ir import Program
from dsopt.runtime.executor import BatchExecutor, Executor

Array = npt.NDArray[Any]
Progress = Callable[[int, int, str], None]

_RUNS_AT_ONCE = 256

DENSE_ATTENTION = "dense attention"
"""What a verdict says of a layer whose attention was kept as it was."""


@dataclass(frozen=True)
class Verdict:
    """How generated code compares with the float model. drop: in points, or percent for errors; place: where the code ran.

    is_held_out: whether none of the samples was calibrated on.
    kept: operators that the search left at a higher precision, with that precision.  layers: by sensitivity, where it was measured.
    against: what it was compared with: float, or a program that was quantised before.  drop_before: with nothing kept; None: not measured.
    """

    metric: str
    float_value: float
    value: float
    drop: float
    unit: str
    max_drop: float
    samples: int
    calibration_samples: int
    place: str
    is_held_out: bool = True
    kept: Mapping[str, str] = field(default_factory=dict)
    layers: tuple[LayerSensitivity, ...] = ()
    against: str = "float"
    drop_before: float | None = None

    @property
    def passes(self) -> bool:
        """Tell whether the drop is allowed."""
        return self.drop <= self.max_drop

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "metric": self.metric, "float": self.float_value, "quantised": self.value, "drop": _finite(self.drop),
            "drop_unit": self.unit, "max_drop": _finite(self.max_drop), "passes": self.passes, "samples": self.samples,
            "against": self.against, "place": self.place, "calibration_samples": self.calibration_samples, "held_out": self.is_held_out,
            "kept": dict(self.kept), "layers": [each.as_dict() for each in self.layers],
            "drop_before": None if self.drop_before is None else _finite(self.drop_before),
        }  # fmt: skip

    def summary(self) -> str:
        """Say in a line how it came out."""
        text = f"{self.metric} {self.value:.4g} against {self.float_value:.4g} in {self.against} on {self.samples} samples, by {self.place}"
        text += "" if self.is_held_out else ", the ones it was calibrated on"
        allowed = f", {self.max_drop:g} allowed" if math.isfinite(self.max_drop) else ""
        count = len(self.kept)
        what = (
            ("layer", "with dense attention")
            if DENSE_ATTENTION in self.kept.values()
            else ("operator", "at higher precision")
        )
        kept = f"; {count} {what[0]}{'' if count == 1 else 's'} {what[1]}" if count else ""
        if self.drop_before is not None:
            kept += f" ({', '.join(self.kept)}), and {self.drop_before:.3g} {self.unit} without"
        return f"{text}: a drop of {self.drop:.3g} {self.unit}{allowed}{kept}"


def _finite(value: float) -> float | None:
    """Return a number as JSON has it: None for an infinite one."""
    return value if math.isfinite(value) else None


_RAISE = (
    "train with quantisation (dsopt.train.qat), keep the layers at the top of the table at higher precision "
    "(quantize{int16=...} or keep=...), or allow a larger drop"
)


def failed(verdict: Verdict, why: str, fix: str = _RAISE) -> CheckError:
    """Return the error of a gate that was missed, with the table of layers."""
    rows = [
        f"{each.snr:7.1f} dB  %{each.node} {each.op}" + (f" in {each.layer}" if each.layer else "")
        for each in verdict.layers
    ]
    table = (
        "\nif one operator alone is rounded, signal over noise of the outputs:\n" + "\n".join(rows[:40]) if rows else ""
    )
    return CheckError(
        "DS0342", f"the drop in {verdict.metric} is {verdict.drop:.3g} {verdict.unit}, and {verdict.max_drop:g} are allowed",
        where=f"{verdict.summary()}{table}", why=why,
        fix=fix,
    )  # fmt: skip


def run_program(
    program: Program, feeds: Sequence[Feed], progress: Progress | None = None, what: str = "judging"
) -> Array:
    """Return the first output of a program over all feeds, each from the first values of the states."""
    outputs = []
    for number, feed in enumerate(feeds):
        if progress is not None:
            progress(number, len(feeds), what)
        inputs = tuple(torch.from_numpy(np.asarray(feed[spec.name], order="C")) for spec in program.signature.inputs)
        outputs.append(_rows(program.run(*inputs)[0].numpy()))
    return np.concatenate(outputs)


def run_code(executor: Executor, program: Program, feeds: Sequence[Feed], progress: Progress | None = None) -> Array:
    """Return the first output of emitted code over all feeds, each from the first values of the states."""
    states = {f"state.{state.name}": program.weights[state.name].numpy() for state in program.states}
    name = program.signature.outputs[0].name
    outputs: list[Array] = []
    for start in range(0, len(feeds), _RUNS_AT_ONCE):
        if progress is not None:
            progress(start, len(feeds), "judging the generated code")
        chunk = [{**feed, **states} for feed in feeds[start : start + _RUNS_AT_ONCE]]
        many = isinstance(executor, BatchExecutor)
        results = executor.run_many(chunk) if many else [executor.run(each) for each in chunk]  # type: ignore[attr-defined]
        outputs += [_rows(np.asarray(result[name])) for result in results]
    return np.concatenate(outputs)


def _rows(output: Array) -> Array:
    return output.reshape(1) if output.ndim == 0 else output


def reference_values(metric: Metric, samples: Samples, chosen: Array, float_outputs: Array) -> tuple[Array, float]:
    """Return what outputs are compared with, labels or the float model's outputs, and the float model's own value.

    Raises UsageError if the metric needs labels and there are none.
    """
    if not metric.needs_labels:
        reference = float_outputs
    else:
        labels = samples.labels_of(chosen)
        if labels is None:
            raise UsageError(
                "DS0343", f"the metric {metric.name!r} needs labels, and the data holds none",
                fix='add an array "labels" to the .npz (or name yours with --labels), or judge by --metric agreement or snr',
            )  # fmt: skip
        reference = labels
    return reference, metric.function(float_outputs, reference)
