"""The cpu artifact of every model: its error, its latency beside ONNX Runtime and eager torch, the cost of compiling.

Error: the largest over all output tensors of max|a - b| / max|b|, b being eager torch's result, on the example of two
rows and on its first row. Latency: one row, all sides in turn in one process, at 1 and 2 threads; the peer is ONNX
Runtime on `torch.onnx.export`'s model. Ratios are medians of paired rounds with their one-sided 95 % upper bound.
Compiling: CPU seconds of a whole `dsopt compile`, imports and the check of the result included.

Where the float model fits a Cortex-M4, the same error is taken from the emulated core. With --assets, keyword spotting
with its published weights is judged on the 1,000 official samples, and on 100 of them on the emulated core.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch

import dsopt
import dsopt.runtime
import models
from benchmarks.harness import Row, interleave, paired_ratio, parser, progress, relative_error, report
from benchmarks.peers import STATES, at_batch_one, eager, export_onnx, flat, onnx_runtime
from dsopt import DsoptError, ModelSpec
from models.trained import kws_samples, trained_kws

QUICK = ("kws", "resnet18", "bert", "gpt_decode", "lstm", "digits")
CHIP = "mcu:cortex-m4"
ON_CHIP = ("kws", "ic", "vww", "ad", "gpt", "gpt_decode", "lstm", "gru", "unet", "digits")
CHIP_SAMPLES = 100
OPENINGS = 5
"""Times that both sides are loaded anew, because where weights lie in memory makes a session lucky or not."""
STEPS = 4
"""Calls of a model with state whose last results are compared."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--models", metavar="ID,...", help=f"of {', '.join(models.MODELS)}")
    options.add_argument("--no-chip", action="store_true", help="leave the emulated core out")
    chosen = options.parse_args(arguments)
    names = chosen.models.split(",") if chosen.models else QUICK if chosen.quick else tuple(models.MODELS)
    unknown = sorted(set(names) - set(models.MODELS))
    if unknown:
        options.error(f"no model {unknown[0]!r}; known: {', '.join(models.MODELS)}")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            rows += measure_cpu(name, Path(folder), seconds=1.0 if chosen.quick else 6.0)
        if not chosen.no_chip:
            rows += [measure_chip(name, Path(folder)) for name in names if name in ON_CHIP]
        if chosen.assets:
            rows.append(measure_trained(chosen.assets, Path(folder), with_chip=not chosen.no_chip))
    report("cpu", rows, as_json=chosen.json)


def measure_cpu(name: str, folder: Path, *, seconds: float) -> list[Row]:
    """Compile, compare and time one model; one row for each number of threads."""
    progress(f"{name}: compiling")
    artifact, peer = folder / f"{name}-cpu", folder / f"{name}.onnx"
    compile_seconds = compile_in_a_process(models.MODELS[name], artifact)
    spec = models.build(name)
    one = at_batch_one(spec)
    states = [key for key, _ in spec.model.named_buffers() if name in STATES and STATES[name](key)]
    error = max(error_of(artifact, spec, STEPS if states else 1), error_of(artifact, one, STEPS if states else 1))
    progress(f"{name}: exporting the peer's model")
    export_onnx(spec, peer, states)
    cost = {"compile_cpu_seconds": compile_seconds}
    return [
        {"model": name, "relative_error": error, **time_one(name, artifact, peer, one, threads, seconds), **cost}
        for threads in (1, 2)
    ]


def time_one(name: str, artifact: Path, peer: Path, spec: ModelSpec, threads: int, seconds: float) -> Row:
    """Time the artifact and its peers in turn, `OPENINGS` times loaded anew, for `seconds` in all."""
    progress(f"{name}: timing with {threads} threads")
    torch.set_num_threads(threads)
    times: dict[str, list[list[float]]] = {"dsopt": [], "onnxruntime": [], "eager": []}
    for _ in range(OPENINGS):
        candidates = {
            "dsopt": session(artifact, spec, threads=threads),
            "onnxruntime": onnx_runtime(peer, spec, threads),
            "eager": eager(spec),
        }
        for side, rounds in interleave(candidates, budget_seconds=seconds / OPENINGS, least_rounds=5).items():
            times[side].append(rounds)
    onnxruntime_ratio = paired_ratio(times["dsopt"], times["onnxruntime"])
    eager_ratio = paired_ratio(times["dsopt"], times["eager"])
    medians = {side: statistics.median(chain.from_iterable(rounds)) for side, rounds in times.items()}
    return {
        "threads": threads,
        "seconds": medians["dsopt"],
        "onnxruntime_seconds": medians["onnxruntime"],
        "onnxruntime_ratio": onnxruntime_ratio.median,
        "onnxruntime_ratio_upper95": onnxruntime_ratio.upper95,
        "eager_seconds": medians["eager"],
        "eager_ratio": eager_ratio.median,
        "eager_ratio_upper95": eager_ratio.upper95,
    }


def compile_in_a_process(factory: str, out: Path) -> float:
    """Run `dsopt compile` for cpu and return its CPU seconds, user and system."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "dsopt", "compile", factory, "--target", "cpu", "-o", str(out), "-q"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def session(artifact: Path, spec: ModelSpec, *, threads: int | None = None) -> Callable[[], object]:
    """Return a call of the artifact on the example."""
    loaded = dsopt.runtime.load(artifact) if threads is None else dsopt.runtime.load(artifact, threads=threads)
    args = [value.numpy() for value in spec.args]
    named = {name: value.numpy() for name, value in spec.kwargs.items()}
    return partial(loaded.run, *args, **named)


def error_of(artifact: Path, spec: ModelSpec, calls: int = 1) -> float:
    """Return the relative error against eager torch after `calls` calls on each side."""
    ours, reference = session(artifact, spec), eager(spec)
    results = [(flat(ours()), reference()) for _ in range(calls)]
    return relative_error(*results[-1])


def measure_chip(name: str, folder: Path) -> Row:
    """Compile one model in float for the chip and compare the emulated core with eager torch."""
    progress(f"{name}: compiling for {CHIP} and running on the emulated core")
    spec = at_batch_one(models.build(name))
    row: Row = {"model": name, "target": CHIP, "relative_error": None, "instructions": None}
    row |= {"ram_bytes": None, "flash_bytes": None, "refused": None}
    try:
        memory = compile_for_chip(spec, folder / f"{name}-chip")
    except DsoptError as error:
        return row | {"refused": f"{error.code}: {error.what}"}
    row["relative_error"] = error_of(folder / f"{name}-chip", spec, STEPS if name in STATES else 1)
    return row | memory


def compile_for_chip(spec: ModelSpec, out: Path) -> dict[str, int | None]:
    """Compile at the sizes of the example; return RAM and flash in bytes and the instructions of one inference."""
    artifact = dsopt.compile(dsopt.capture(spec.model, spec.args, kwargs=spec.kwargs), CHIP)
    artifact.save(out)
    memory = artifact.manifest["memory"]
    return {key: memory.get(key) for key in ("instructions", "ram_bytes", "flash_bytes")}


def measure_trained(assets: Path, folder: Path, *, with_chip: bool) -> Row:
    """Judge keyword spotting with its published weights, on the cpu and on the emulated core."""
    progress("kws with its published weights")
    spec, (x, y) = trained_kws(assets), kws_samples(assets)
    with torch.inference_mode():
        expected = spec.model(x).numpy()
    dsopt.compile(dsopt.capture(spec), "cpu").save(folder / "trained-cpu")
    (ours,) = flat(dsopt.runtime.load(folder / "trained-cpu").run(x.numpy()))
    labels = y.numpy()
    row: Row = {
        "model": "kws, published weights",
        "samples": len(labels),
        "accuracy_ratio": float(np.mean(ours.argmax(1) == labels)),
        "eager_accuracy_ratio": float(np.mean(expected.argmax(1) == labels)),
        "relative_error": relative_error([ours], [expected]),
    }
    if not with_chip:
        return row
    memory = compile_for_chip(at_batch_one(spec), folder / "trained-chip")
    chosen = np.linspace(0, len(y) - 1, CHIP_SAMPLES).astype(int)
    with dsopt.runtime.load(folder / "trained-chip") as chip:
        calls = [{chip.inputs[0].name: x[index : index + 1].numpy()} for index in chosen]
        on_chip = np.concatenate([result[chip.outputs[0].name] for result in chip.run_many(calls)])
    return row | {
        "chip_samples": len(chosen),
        "chip_same_class": int(np.sum(on_chip.argmax(1) == expected[chosen].argmax(1))),
        "chip_relative_error": relative_error([on_chip], [expected[chosen]]),
        **{f"chip_{key}": value for key, value in memory.items()},
    }


if __name__ == "__main__":
    main()
