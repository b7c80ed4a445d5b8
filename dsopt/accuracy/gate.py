"""The accuracy gate: generated code is judged on the user's data, and layers are raised to a higher precision until it passes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from dsopt.accuracy.dense_search import by_loss, fewest, keep_dense
from dsopt.accuracy.job import Draft, Job, prepared_twin
from dsopt.accuracy.judge import DENSE_ATTENTION, Verdict, failed, reference_values, run_code, run_program
from dsopt.accuracy.metrics import Function, Metric, find_metric
from dsopt.accuracy.reference import is_rounded, reference_program
from dsopt.accuracy.samples import LABELS, Samples
from dsopt.accuracy.search import FALLBACKS, candidates
from dsopt.accuracy.sensitivity import LayerSensitivity, sensitivities
from dsopt.errors import UsageError
from dsopt.ir import Program
from dsopt.passes.base import Pass, PassManager

Array = npt.NDArray[Any]

_SENSITIVITY_SAMPLES = 64
_ATTEMPTS = 3


@dataclass(frozen=True)
class Gate:
    """What to judge by. metric: a name or a function of (outputs, labels or float outputs); None: by what the data holds.

    max_drop: largest drop against the float model, in points, or in percent for errors; infinite: judge, and never fail.
    fallback: how far layers may be raised: "none", "int16" or "float".  labels: the array of the data that holds the labels.
    reference: the float model, where the program to be compiled was quantised before (by training, or by another tool); it takes
    the same inputs.
    """

    max_drop: float = math.inf
    metric: str | Function | Metric | None = None
    fallback: str = "int16"
    labels: str = LABELS
    reference: Program | None = None

    def __post_init__(self) -> None:
        """Refuse what means nothing. Raises UsageError."""
        if math.isnan(self.max_drop):
            raise UsageError("DS0344", "the largest drop is no number", fix="give it in points, such as 0.5")
        if self.fallback not in FALLBACKS:
            raise UsageError("DS0344", f"unknown fallback {self.fallback!r}", fix="known: " + ", ".join(FALLBACKS))


def pass_gate(job: Job, pipeline: Sequence[Pass], gate: Gate) -> tuple[Draft, Verdict, tuple[Pass, ...]]:
    """Compile so that the generated code passes the gate; returns what passed, the verdict and the passes that led there.

    Raises CheckError with the table of layers if nothing passes, UsageError without data.
    """
    if job.samples is None:
        raise UsageError("DS0345", "there is no data to judge on", fix="give it with --data, or leave --max-drop out")
    referee = _Referee(job, gate, job.samples)
    draft = job.compile(pipeline)
    verdict = referee.judge(draft)
    if verdict.passes:
        return draft, verdict, tuple(pipeline)
    place = next((n for n, each in enumerate(pipeline) if each.name in ("quantize", "quantize-prepare")), None)
    if place is None:
        sparse = next((n for n, each in enumerate(pipeline) if each.name == "sparse-attention"), None)
        if sparse is None:
            raise failed(verdict, "no quantize pass is among the passes, so there is no layer that could be raised")
        return referee.search_dense(tuple(pipeline), sparse, draft, verdict)
    layers = referee.sensitivities(pipeline, place)
    verdict = replace(verdict, layers=layers)
    if gate.fallback == "none":
        raise failed(verdict, "no layer may be raised to a higher precision (fallback none)")
    return referee.search(tuple(pipeline), place, layers, verdict)


class _Referee:
    def __init__(self, job: Job, gate: Gate, samples: Samples) -> None:
        self.job, self.gate, self.samples = job, gate, samples
        self.calibration, self.chosen = samples.split(job.calibration_samples, job.options.seed)
        self.feeds = samples.feeds(self.chosen)
        against = reference_program(job.program, gate.reference, math.isfinite(gate.max_drop))
        self.against = "the quantised program" if is_rounded(against) else "float"
        outputs = run_program(against, self.feeds, job.options.progress, "judging the float model")
        self.metric = find_metric(_default_metric(samples, outputs) if gate.metric is None else gate.metric)
        self.reference, self.float_value = reference_values(self.metric, samples, self.chosen, outputs)

    def judge(self, draft: Draft) -> Verdict:
        """Run the generated code on all samples that are for judging."""
        executor, place = self.job.backend.judge_executor(draft.artifact)
        if executor is None:
            raise UsageError(
                "DS0346",
                f"the generated code cannot be judged here: {place}",
                fix="leave --max-drop out, or compile where it runs",
            )
        try:
            outputs = run_code(executor, draft.program, self.feeds, self.job.options.progress)
        finally:
            executor.close()
        value = self.metric.function(outputs, self.reference)
        return Verdict(
            self.metric.name, self.float_value, value, self.metric.drop(self.float_value, value), self.metric.drop_unit, self.gate.max_drop,
            len(self.chosen) * self.samples.rows, len(self.calibration), place, not np.intersect1d(self.calibration, self.chosen).size,
            against=self.against,
        )  # fmt: skip

    def sensitivities(self, pipeline: Sequence[Pass], place: int) -> tuple[LayerSensitivity, ...]:
        """Round each operator alone, in the program as it stands before it is converted."""
        passes = (*pipeline[:place], prepared_twin(pipeline[place]))
        prepared, _ = PassManager(passes).run(self.job.program, self.job.context())
        feeds = self.samples.feeds(self.calibration[:_SENSITIVITY_SAMPLES])
        return sensitivities(prepared, feeds, self.job.options.progress)

    def search(
        self, pipeline: tuple[Pass, ...], place: int, layers: tuple[LayerSensitivity, ...], first: Verdict
    ) -> tuple[Draft, Verdict, tuple[Pass, ...]]:  # fmt: skip
        """Raise layers until the quantised program, and then the code made of it, passes."""
        margin = 0.0
        verdict, least = first, math.inf
        for _ in range(_ATTEMPTS):
            limit = self.gate.max_drop - margin
            drops: dict[Pass, float] = {}

            def is_good(quantizer: Pass, limit: float = limit, drops: dict[Pass, float] = drops) -> bool:
                drops[quantizer] = self._simulated_drop((*pipeline[:place], quantizer, *pipeline[place + 1 :]))
                return drops[quantizer] <= limit

            found = candidates(pipeline[place], layers, self.gate.fallback, is_good)
            least = min(least, *drops.values())
            if found is None:
                break
            quantizer = replace(pipeline[place], **found.options)
            chosen = (*pipeline[:place], quantizer, *pipeline[place + 1 :])
            draft = self.job.compile(chosen)
            verdict = replace(self.judge(draft), layers=layers, kept=found.kept)
            if verdict.passes:
                return draft, verdict, chosen
            margin += max(verdict.drop - drops[quantizer], 1e-6)
        raise failed(
            verdict,
            f"it is missed even with all operators raised as far as fallback {self.gate.fallback!r} allows; "
            f"the least drop of the quantised program was {least:.3g} {self.metric.drop_unit}",
        )

    def search_dense(
        self, pipeline: tuple[Pass, ...], place: int, first: Draft, verdict: Verdict
    ) -> tuple[Draft, Verdict, tuple[Pass, ...]]:  # fmt: skip
        """Leave attention dense where it is furthest from sparse until the program, and then the code made of it, passes."""
        layers, margin, before = by_loss(first.program, self.job.context()), 0.0, verdict.drop
        why = "it is missed even with all attention dense"

        def kept(some: list[str]) -> tuple[Pass, ...]:
            return (*pipeline[:place], keep_dense(pipeline[place], some), *pipeline[place + 1 :])

        for _ in range(_ATTEMPTS if layers else 0):
            drops: dict[int, float] = {}

            def is_good(some: list[str], margin: float = margin, drops: dict[int, float] = drops) -> bool:
                drops[len(some)] = self._simulated_drop(kept(some))
                return drops[len(some)] <= self.gate.max_drop - margin

            found = fewest(layers, is_good)
            if found is None:
                break
            draft = self.job.compile(kept(found))
            verdict = replace(self.judge(draft), kept=dict.fromkeys(found, DENSE_ATTENTION), drop_before=before)
            if verdict.passes:
                return draft, verdict, kept(found)
            margin += max(verdict.drop - drops[len(found)], 1e-6)
        else:
            if layers:
                why = f"the code was {_ATTEMPTS} times worse than its program promised"
        raise failed(
            verdict, why, "use no sparse attention, make its ratio larger or its tile smaller, or allow a larger drop"
        )

    def _simulated_drop(self, pipeline: Sequence[Pass]) -> float:
        done = self.job.rewrite(pipeline)
        outputs = run_program(done.rounded, self.feeds, self.job.options.progress, "trying a precision")
        return self.metric.drop(self.float_value, self.metric.function(outputs, self.reference))


def _default_metric(samples: Samples, outputs: Array) -> str:
    """Judge by labels where there are some; else by the float model's classes, or by its numbers where each row has only one."""
    if samples.labels is None:
        return "agreement" if outputs.ndim > 1 and outputs.shape[-1] > 1 else "snr"
    return "accuracy" if np.issubdtype(samples.labels.dtype, np.integer) else "rmse"
