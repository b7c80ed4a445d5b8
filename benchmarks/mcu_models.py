"""What benchmarks/mcu.py measures: programs for one sample at a time, with samples of their inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dsopt
from dsopt import Program, api
from models.autoencoder import ad
from models.bert import bert
from models.mobilenet_v1 import vww
from models.mobilenet_v2 import mobilenet_v2
from models.rnn import lstm_stream
from models.trained import ic_samples, kws_samples, trained_ic, trained_kws

CALIBRATION = 100
SEEDED_SAMPLES = 20
TINY = ("ad", "ic", "kws", "vww")
"""The four networks of MLPerf Tiny."""
WITH_ASSETS = ("ic", "kws")
_TOKENS, _VOCABULARY = 64, 1000


@dataclass(frozen=True)
class Subject:
    """A program for one sample at a time, and samples of its inputs by name, of which the first `calibration` calibrate.

    labels: (N,), where the samples have some. The samples of a program with states are the steps of one stream.
    """

    program: Program
    samples: dict[str, np.ndarray]
    labels: np.ndarray | None = None
    calibration: int = CALIBRATION

    def feed(self, number: int) -> dict[str, np.ndarray]:
        """Return one sample, with a batch of one."""
        return {name: values[number : number + 1] for name, values in self.samples.items()}

    @property
    def count(self) -> int:
        """Return the number of samples."""
        return len(next(iter(self.samples.values())))

    def numbers(self, most: int) -> list[int]:
        """Return which samples to run, at most so many: those that do not calibrate first."""
        known = min(self.calibration, self.count)
        return [*range(known, self.count), *range(known)][:most]


def _single(model: Any, **sizes: int) -> Program:
    program = dsopt.capture(model)
    return program.specialize({"batch": 1, **sizes}) if program.dims else program


def _seeded(spec: dsopt.ModelSpec, calibration: int = CALIBRATION, samples: int = SEEDED_SAMPLES) -> Subject:
    program = _single(spec)
    (port,) = program.signature.inputs
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(calibration + samples, *spec.args[0].shape[1:], generator=generator)
    return Subject(program, {port.name: x.numpy()}, calibration=calibration)


def _trained(spec: dsopt.ModelSpec, x: torch.Tensor, y: torch.Tensor) -> Subject:
    program = _single(spec)
    (port,) = program.signature.inputs
    return Subject(program, {port.name: x.numpy()}, y.numpy())


def _bert() -> Subject:
    spec = bert(layers=2, hidden=64, heads=4, vocabulary=_VOCABULARY, sequence=_TOKENS)
    rng, count = np.random.default_rng(0), CALIBRATION + SEEDED_SAMPLES
    mask = np.arange(_TOKENS)[None] < rng.integers(_TOKENS // 4, _TOKENS + 1, (count, 1))
    samples = {"ids": rng.integers(0, _VOCABULARY, (count, _TOKENS)), "mask": mask.astype(np.int64)}
    return Subject(_single(spec, sequence=_TOKENS), samples)


MODELS: dict[str, Callable[[Path | None], Subject]] = {
    "ad": lambda assets: _seeded(ad()),
    "ic": lambda assets: _trained(trained_ic(assets), *ic_samples(assets)),  # type: ignore[arg-type]
    "kws": lambda assets: _trained(trained_kws(assets), *kws_samples(assets)),  # type: ignore[arg-type]
    "vww": lambda assets: _seeded(vww()),
    "bert": lambda assets: _bert(),
    "lstm": lambda assets: _seeded(lstm_stream()),
    "mobilenet_v2_96": lambda assets: _seeded(mobilenet_v2(side=96), 10, 3),
    "mobilenet_v2_224": lambda assets: _seeded(mobilenet_v2(), 4, 1),
}
"""Makers by name. assets: the folder with published weights and samples, for `WITH_ASSETS`."""


def own(model: str, inputs: Path) -> Subject:
    """Return another program with the samples of an .npz, whose arrays count samples in their first dim."""
    program = api.load_model(model)
    program = program.specialize(dict.fromkeys(program.dims, 1)) if program.dims else program
    with np.load(inputs, allow_pickle=False) as arrays:
        return Subject(program, {spec.name: arrays[spec.name] for spec in program.signature.inputs})
