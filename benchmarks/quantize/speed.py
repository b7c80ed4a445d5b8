"""How long quantising takes: CPU seconds of preparing, one calibration batch included, and converting."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import torch
from torch import nn

import dsopt
import models
from benchmarks.harness import Row, progress
from benchmarks.quantize.rows import PREPARATION
from dsopt import ModelSpec, PassContext, PassManager, parse_pipeline
from models.seeded import example, seeded

LIMITS = {"6-conv CNN": 2.0, "resnet50": 20.0}
"""CPU seconds that preparing and converting may take."""


def six_convolutions() -> ModelSpec:
    """Return a network of six convolutions with batch norm on images of 32x32."""

    def build() -> nn.Module:
        widths = (3, 32, 32, 64, 64, 128, 128)
        layers: list[nn.Module] = []
        for number, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            layers += [nn.Conv2d(inputs, outputs, 3, stride=1 + number % 2, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))

    return ModelSpec(seeded(build), (example(8, 3, 32, 32),))


FACTORIES: dict[str, Callable[[], ModelSpec]] = {
    "6-conv CNN": six_convolutions,
    "resnet50": lambda: models.build("resnet50"),
}


def time_rows() -> list[Row]:
    """Time both networks on one thread, each with a batch of its example."""
    torch.set_num_threads(1)
    return [_timed(name, factory()) for name, factory in FACTORIES.items()]


def _timed(name: str, spec: ModelSpec) -> Row:
    progress(f"{name}: timing prepare and convert")
    program, _ = PassManager(parse_pipeline(PREPARATION)).run(dsopt.capture(spec))
    batch = {each.name: value for each, value in zip(program.signature.inputs, spec.args, strict=True)}
    start = time.process_time()
    prepared, _ = PassManager(parse_pipeline("quantize-prepare")).run(program, PassContext(calibration=(batch,)))
    middle = time.process_time()
    PassManager(parse_pipeline("quantize-convert")).run(prepared)
    end = time.process_time()
    return {
        "quantising": name,
        "calibration_batch": len(spec.args[0]),
        "prepare_cpu_seconds": middle - start,
        "convert_cpu_seconds": end - middle,
        "cpu_seconds": end - start,
        "limit_cpu_seconds": LIMITS[name],
    }
