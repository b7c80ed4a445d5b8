"""The networks that are quantised: float programs, samples to calibrate and to judge on, and how each is trained with quantisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import dsopt
from benchmarks.harness import progress
from benchmarks.quantize.images import read_jpegs, train_images
from dsopt import Program
from dsopt.train import QatResult, qat
from models import digits, sentiment, turbofan
from models.trained import ic_samples, kws_samples, trained_ic, trained_kws

CALIBRATION = 100
"""Samples that calibrate; none of them is judged on."""

Samples = tuple[Tensor, Tensor]
"""Inputs and labels."""

Trainer = Callable[[Program, int, int], QatResult]
"""(float program, bits of the weights, seed) -> what training with quantisation gives."""


@dataclass(frozen=True)
class Subject:
    """A network to quantise. judged: held-out samples, by the name of the data.  metric: "accuracy" or "rmse".

    train: None where there is nothing to train on, and then `untrained` says so.
    """

    program: Program
    calibration: Tensor
    judged: Mapping[str, Samples]
    metric: str = "accuracy"
    train: Trainer | None = None
    untrained: str = ""


def keyword_spotting(assets: Path, quick: bool) -> Subject:
    """The DS-CNN of MLPerf Tiny: 100 of the 1,000 official samples calibrate, 900 are judged on."""
    x, y = kws_samples(assets)
    calibration, rest = _split(len(y))
    judged = {"official": (x[rest], y[rest])}
    why = "no training data: the official samples are the only ones here, and they are for judging"
    return Subject(dsopt.capture(trained_kws(assets)), x[calibration], judged, untrained=why)


def image_classification(assets: Path, quick: bool) -> Subject:
    """The ResNet-8 of MLPerf Tiny: 100 of 846 images of CIFAR-10 calibrate, 746 are judged on, and so are the JPEG test images."""
    x, y = ic_samples(assets)
    calibration, rest = _split(len(y))
    judged = {"cifar10": (x[rest], y[rest])}
    if not quick:
        judged["cifar10 as JPEG"] = read_jpegs(assets / "data" / "cifar10_test_jpeg.npz")
    program = dsopt.capture(trained_ic(assets))
    return Subject(program, x[calibration], judged, train=lambda *given: train_images(assets, *given))


def handwritten_digits(assets: Path | None, quick: bool) -> Subject:
    """The digits network, trained first: 100 of its training images calibrate, 360 others are judged on."""
    data = digits.load_digits()
    model = digits.train(data)
    calibration, _ = _split(len(data.y_train))

    def train(program: Program, bits: int, seed: int) -> QatResult:
        loader = _loader(data.x_train, data.y_train, 64)
        return qat(
            program, loader, F.cross_entropy, epochs=8, learning_rate=1e-3, quantize=f"weights={bits}", seed=seed
        )

    judged = {"held out": (data.x_test, data.y_test)}
    return Subject(dsopt.capture(digits.spec(model)), data.x_train[calibration], judged, train=train)


def sentences(assets: Path, quick: bool) -> Subject:
    """The transformer for SST-2, trained first: 100 training sentences calibrate, the 872 of dev.tsv are judged on."""
    data = sentiment.load_sst2(assets / "data" / "sst2")
    progress("sst2: training the float network")
    program = dsopt.capture(sentiment.spec(sentiment.train(data)))
    calibration, _ = _split(len(data.y_train))

    def train(program: Program, bits: int, seed: int) -> QatResult:
        loader = _loader(data.x_train, data.y_train, 64, sentiment.drop_words)
        return qat(
            program, loader, F.cross_entropy, epochs=2, learning_rate=1e-4, quantize=f"weights={bits}", seed=seed
        )

    return Subject(program, data.x_train[calibration], {"dev": (data.x_test, data.y_test)}, train=train)


def engines(assets: Path, quick: bool) -> Subject:
    """The LSTM for FD001, trained first: 100 training windows calibrate, the last window of 100 other engines is judged on."""
    data = turbofan.load_fd001(assets / "data" / "cmapss")
    progress("fd001: training the float network")
    program = dsopt.capture(turbofan.spec(turbofan.train(data)))
    calibration, _ = _split(len(data.y_train))

    def train(program: Program, bits: int, seed: int) -> QatResult:
        loader = _loader(data.x_train, data.y_train, 128)
        return qat(program, loader, turbofan.loss, epochs=4, learning_rate=5e-4, quantize=f"weights={bits}", seed=seed)

    return Subject(program, data.x_train[calibration], {"test": (data.x_test, data.y_test)}, "rmse", train)


SUBJECTS: dict[str, Callable[[Any, bool], Subject]] = {
    "kws": keyword_spotting,
    "ic": image_classification,
    "digits": handwritten_digits,
    "sst2": sentences,
    "fd001": engines,
}
"""By the id of the model."""

WITHOUT_ASSETS = ("digits",)


def _split(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the samples to calibrate on, the same each time, and the rest."""
    order = np.random.default_rng(0).permutation(count)
    return np.sort(order[:CALIBRATION]), np.sort(order[CALIBRATION:])


def _loader(x: Tensor, y: Tensor, batch: int, change: Callable[[Tensor], Tensor] | None = None) -> DataLoader[Any]:
    """Return shuffled batches, in another order each time they are gone through."""

    def together(rows: list[tuple[Tensor, Tensor]]) -> Samples:
        inputs, labels = (torch.stack(each) for each in zip(*rows, strict=True))
        return inputs if change is None else change(inputs), labels

    return DataLoader(TensorDataset(x, y), batch, shuffle=True, collate_fn=together)
