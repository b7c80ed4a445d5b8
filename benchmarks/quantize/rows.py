"""Rows of the benchmark: one for each model, method, number of bits and set of held-out samples."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from benchmarks.harness import Row, progress
from benchmarks.quantize.outputs import (
    Built,
    build,
    code_outputs,
    disagreements,
    exact_outputs,
    onnx_outputs,
    output_step,
    program_outputs,
)
from benchmarks.quantize.subjects import Samples, Subject
from dsopt import PassContext, PassManager, Program, parse_pipeline
from dsopt.accuracy.metrics import METRICS

PREPARATION = "canonicalize,fold-batch-norm,fuse-attention,fold-constants,remove-dead-code"
LAYER_SAMPLES = 16
"""On which layers are compared; the oracle is slow."""


CALIBRATED = {
    "ptq": "quantize{{weights={}}}",
    "ptq+": "quantize-prepare{{weights={}}},adaptive-rounding,quantize-convert",
}
"""The passes of what needs no training, by method."""


def calibrated(program: Program, calibration: Tensor, bits: int, method: str = "ptq") -> tuple[Program, float]:
    """Quantise without training; returns CPU seconds of preparing, with calibration, and converting."""
    float_program, _ = PassManager(parse_pipeline(PREPARATION)).run(program)
    (spec,) = program.signature.inputs
    context = PassContext(calibration=({spec.name: calibration},))
    start = time.process_time()
    rounded, _ = PassManager(parse_pipeline(CALIBRATED[method].format(bits))).run(float_program, context)
    return rounded, time.process_time() - start


def rows_of(name: str, subject: Subject, methods: Sequence[str], bits: Sequence[int], seeds: int) -> Iterator[Row]:
    """Quantise in every way that was asked for; where there is nothing to train on, the row says so in a note."""
    for each in bits:
        progress(f"{name}: calibrating with {each}-bit weights")
        rounded, seconds = calibrated(subject.program, subject.calibration, each)
        if "ptq" in methods:
            yield from _judged(name, "ptq", each, subject, [rounded], seconds, 0.0)
        if "ptq+" in methods:
            chosen, longer = calibrated(subject.program, subject.calibration, each, "ptq+")
            yield from _judged(name, "ptq+", each, subject, [chosen], longer, 0.0)
        if "qat" not in methods:
            continue
        if subject.train is None:
            yield {"model": name, "method": "qat", "bits": each, "note": subject.untrained}
            continue
        trained, start = [], time.process_time()
        for seed in range(seeds):
            progress(f"{name}: training with {each}-bit weights, seed {seed}")
            trained.append(subject.train(subject.program, each, seed).program)
        yield from _judged(name, "qat", each, subject, trained, seconds, (time.process_time() - start) / seeds)


def _judged(
    name: str, method: str, bits: int, subject: Subject, programs: Sequence[Program], seconds: float, training: float
) -> Iterator[Row]:
    progress(f"{name}: judging {method} with {bits}-bit weights")
    built = [build(rounded, subject.calibration[:LAYER_SAMPLES]) for rounded in programs]
    for data, samples in subject.judged.items():
        values, differing = _measured(subject, built, samples)
        yield (
            {"model": name, "method": method, "bits": bits, "data": data}
            | values
            | _agreement(built)
            | differing
            | {"samples": len(samples[1]), "cpu_seconds": seconds, "training_cpu_seconds": training}
        )


def _measured(subject: Subject, built: Sequence[Built], samples: Samples) -> tuple[Row, Row]:
    """Return accuracy or error of the generated C, and how often other ways to run the same program give another answer."""
    x, y = samples
    metric, labels = METRICS[subject.metric], y.numpy()
    float_value = metric.function(program_outputs(subject.program, x), labels)
    values, simulated, exact, other = [], [], [], []
    for each in built:
        code = code_outputs(each.rounded, each.chip, x)
        values.append(metric.function(code, labels))
        step = output_step(each.rounded)
        simulated.append(disagreements(code, program_outputs(each.rounded, x), step))
        exact.append(disagreements(code, exact_outputs(each.rounded, x), step))
        other.append(disagreements(code, onnx_outputs(each.cpu, x), step))
    drops = [metric.drop(float_value, value) for value in values]
    measured = {
        "metric": subject.metric,
        subject.metric: float(np.mean(values)),
        f"float_{subject.metric}": float_value,
        "drop": float(np.mean(drops)),
        "drop_unit": metric.drop_unit,
        "spread": float(np.std(drops)),
        "seeds": len(built),
    }
    differing = {
        "argmax_disagreements": max(simulated),
        "exact_disagreements": max(exact),
        "onnxruntime_disagreements": max(other),
    }
    return measured, differing


def _agreement(built: Sequence[Built]) -> Row:
    """Return the worst layer of all seeds, and what the oracle and the generated C do not share."""
    simulated = max(max(each.layers.simulation.values()) for each in built)
    other = max(max(each.layers.onnxruntime.values()) for each in built)
    return {
        "max_lsb_difference": max(simulated, other),
        "simulation_lsb_difference": simulated,
        "onnxruntime_lsb_difference": other,
        "layers": min(len(each.layers.simulation) for each in built),
        "onnxruntime_layers": min(len(each.layers.onnxruntime) for each in built),
        "oracle_mismatches": max(each.mismatches for each in built),
    }
