"""Scores of programs, of modules in training, and of emitted code, by one metric on the same held-out samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from dsopt.accuracy.judge import reference_values, run_code, run_program
from dsopt.accuracy.metrics import Function, Metric, find_metric
from dsopt.accuracy.samples import LABELS, Samples, read_samples
from dsopt.artifact import Artifact
from dsopt.backends.base import Backend
from dsopt.compression.data import called_with
from dsopt.ir import Program
from dsopt.train.data import call, to_device
from dsopt.train.distill_loss import first_output


class Scorer:
    """Judge by a metric; by default accuracy where labels are classes, rmse where they are numbers, agreement where there are none.

    program: the one that all others are compared with; `value` is its own score, in percent for accuracy and agreement.
    """

    def __init__(self, program: Program, samples: Samples, metric: str | Function | Metric | None) -> None:
        self._program, self._samples = program, samples
        self._feeds = samples.feeds(np.arange(samples.count))
        outputs = run_program(program, self._feeds)
        self.metric = find_metric(_default(samples) if metric is None else metric)
        self._reference, self.value = reference_values(self.metric, samples, np.arange(samples.count), outputs)

    def of_program(self, program: Program) -> float:
        """Return the score of a program."""
        return self.metric.function(run_program(program, self._feeds), self._reference)

    def of_code(self, backend: Backend, artifact: Artifact, program: Program) -> float | None:
        """Return the score of what was emitted; None where nothing here can run it. program: that it was made of."""
        arrays = dict(self._samples.arrays)
        if self._samples.labels is not None:
            arrays[LABELS] = self._samples.labels
        samples = read_samples(program, arrays)  # cut anew, for sizes may have been fixed for compiling
        executor, _ = backend.judge_executor(artifact)
        if executor is None:
            return None
        try:
            return self.metric.function(
                run_code(executor, program, samples.feeds(np.arange(samples.count))), self._reference
            )
        finally:
            executor.close()

    def of_module(self, module: nn.Module) -> float:
        """Return the score of a program's module, the larger the better, as `validate` of a training wants it."""
        first, outputs = first_output(self._program.signature.output_tree), []
        device = next((each.device for each in module.parameters()), torch.device("cpu"))
        reset: Any = getattr(module, "reset", lambda: None)
        for feed in self._feeds:
            reset()
            found = first(call(module, to_device(called_with(self._program, feed), device))).cpu().numpy()
            outputs.append(found.reshape(1) if found.ndim == 0 else found)
        reset()
        value = self.metric.function(np.concatenate(outputs), self._reference)
        return value if self.metric.higher_is_better else -value


def _default(samples: Samples) -> str:
    if samples.labels is None:
        return "agreement"
    return "rmse" if samples.labels.dtype.kind == "f" else "accuracy"
