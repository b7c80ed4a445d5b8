"""Instructions, memory and agreement of int8 code on simulated microcontroller cores: the four networks of MLPerf Tiny, or your own.

A row for each model and core:

instructions        executed in one inference, exact and repeatable; estimated_cycles is an estimate from them, where the simulator
                    knows addresses (Unicorn), and no claim
ram_bytes           arena with scratch, states, other static data and the peak of the stack together
flash_bytes         code and constants in the linked image, without the test harness; code_bytes without the constants
accuracy            of the emulated core on the labelled samples that did not calibrate, float_accuracy of the network before
equal_outputs       whether all `samples` gave the bits of the NumPy oracle on the emulated core
peer_..., ..._ratio TensorFlow Lite Micro with CMSIS-NN on the reference model of MLPerf Tiny (August 2026, GCC 12.2, -O2), measured
                    in the same simulators, and ours over it

Inputs and outputs are int8, as the peer's. DIR holds models/ and data/ of models/trained.py; kws and ic have their published weights
and real samples, ad and vww seeded ones. --model FILE with --inputs FILE.npz (an array for each input) measures another program.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dsopt
from benchmarks.harness import Row, parser, progress, report
from dsopt import Program, api
from dsopt.backends.mcu.toolchain import find_toolchain
from dsopt.runtime.simulated import open_executor
from models.autoencoder import ad
from models.mobilenet_v1 import vww
from models.trained import ic_samples, kws_samples, trained_ic, trained_kws

CALIBRATION = 100
SEEDED_SAMPLES = 20
MODELS = ("ad", "ic", "kws", "vww")

PEERS: dict[tuple[str, str], dict[str, int]] = {
    ("ad", "cortex-m4"): {"instructions": 582_826, "estimated_cycles": 720_000, "arena_bytes": 2_580, "flash_bytes": 306_900},
    ("ic", "cortex-m4"): {"instructions": 29_861_818, "estimated_cycles": 36_600_000, "arena_bytes": 54_996, "flash_bytes": 150_900},
    ("kws", "cortex-m4"): {"instructions": 7_701_236, "estimated_cycles": 9_300_000, "arena_bytes": 22_820, "flash_bytes": 108_600},
    ("vww", "cortex-m4"): {"instructions": 24_101_526, "estimated_cycles": 29_600_000, "arena_bytes": 100_708, "flash_bytes": 387_900},
    ("ad", "cortex-m55"): {"instructions": 149_926, "arena_bytes": 9_268},
    ("ic", "cortex-m55"): {"instructions": 4_913_628, "arena_bytes": 55_028},
    ("kws", "cortex-m55"): {"instructions": 1_817_246, "arena_bytes": 27_348},
    ("vww", "cortex-m55"): {"instructions": 6_557_931, "arena_bytes": 100_772},
}  # fmt: skip
"""What the peer took."""


@dataclass(frozen=True)
class Subject:
    """A program for one sample at a time, and samples of its inputs by name; labels: (N,), where the samples have some."""

    program: Program
    samples: dict[str, np.ndarray]
    labels: np.ndarray | None = None

    def feed(self, number: int) -> dict[str, np.ndarray]:
        """Return one sample, with a batch of one."""
        return {name: values[number : number + 1] for name, values in self.samples.items()}

    @property
    def count(self) -> int:
        """Return the number of samples."""
        return len(next(iter(self.samples.values())))


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--core", default="cortex-m4", metavar="CORE,...", help="such as cortex-m4,cortex-m55")
    options.add_argument("--models", default=",".join(MODELS), metavar="ID,...", help=f"of {', '.join(MODELS)}")
    options.add_argument("--model", metavar="FILE", help="another model, in place of these")
    options.add_argument(
        "--inputs", type=Path, metavar="FILE", help="its inputs: an .npz, the first dim of each counts samples"
    )
    options.add_argument("--samples", type=int, default=1000, help="at most so many are run")
    options.add_argument("--passes", default="...,quantize", help="what the model goes through")
    chosen = options.parse_args(arguments)
    most = 20 if chosen.quick else chosen.samples
    rows: list[Row] = []
    for name, subject in _subjects(options, chosen):
        for core in chosen.core.split(","):
            rows.append(measure(name, subject, core, most, chosen.passes))
    report("mcu", rows, as_json=chosen.json)


def _subjects(options: argparse.ArgumentParser, chosen: argparse.Namespace) -> list[tuple[str, Subject]]:
    if (chosen.model is None) != (chosen.inputs is None):
        options.error("--model and --inputs belong together")
    if chosen.model is not None:
        return [(Path(chosen.model).stem, _own(chosen.model, chosen.inputs))]
    names = chosen.models.split(",")
    unknown = [name for name in names if name not in MODELS]
    if unknown:
        options.error(f"--models has no {unknown[0]!r}; known: {', '.join(MODELS)}")
    if chosen.assets is None and set(names) & {"ic", "kws"}:
        options.error("ic and kws need --assets DIR; without it, ask for --models ad,vww")
    makers: dict[str, Callable[[], Subject]] = {
        "ad": lambda: _seeded(ad()),
        "vww": lambda: _seeded(vww()),
        "ic": lambda: _trained(trained_ic(chosen.assets), *ic_samples(chosen.assets)),
        "kws": lambda: _trained(trained_kws(chosen.assets), *kws_samples(chosen.assets)),
    }
    return [(name, makers[name]()) for name in names]


def _single(model: Any) -> Program:
    program = dsopt.capture(model)
    return program.specialize({"batch": 1}) if program.dims else program


def _seeded(spec: dsopt.ModelSpec) -> Subject:
    program = _single(spec)
    (port,) = program.signature.inputs
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(CALIBRATION + SEEDED_SAMPLES, *spec.args[0].shape[1:], generator=generator)
    return Subject(program, {port.name: x.numpy()})


def _trained(spec: dsopt.ModelSpec, x: torch.Tensor, y: torch.Tensor) -> Subject:
    program = _single(spec)
    (port,) = program.signature.inputs
    return Subject(program, {port.name: x.numpy()}, y.numpy())


def _own(model: str, inputs: Path) -> Subject:
    program = api.load_model(model)
    program = program.specialize(dict.fromkeys(program.dims, 1)) if program.dims else program
    with np.load(inputs, allow_pickle=False) as arrays:
        return Subject(program, {spec.name: arrays[spec.name] for spec in program.signature.inputs})


def measure(name: str, subject: Subject, core: str, most: int, passes: str) -> Row:
    """Compile for a core, run samples there, and compare each with the oracle."""
    progress(f"{name}: compiling for {core}")
    calibration = [subject.feed(number) for number in range(min(CALIBRATION, subject.count))]
    built = api.build(subject.program, f"mcu:{core}", passes, calibration, name=name.replace("-", "_"), io="int8")
    first = CALIBRATION if subject.count > CALIBRATION else 0
    numbers = list(range(first, min(subject.count, first + most)))
    progress(f"{name}: running {len(numbers)} samples on {core}")
    executor = open_executor(built.artifact)
    got = executor.run_many([subject.feed(number) for number in numbers])
    done = executor.last_simulation
    assert done is not None
    outputs = [spec.name for spec in subject.program.signature.outputs]
    equal, floats = True, []
    for number, result in zip(numbers, got, strict=True):
        values = [torch.from_numpy(value) for value in subject.feed(number).values()]
        wanted = built.program.run(*values)
        equal &= all(np.array_equal(result[key], want.numpy()) for key, want in zip(outputs, wanted, strict=True))
        if subject.labels is not None:
            floats.append(subject.program.run(*values)[0].numpy().argmax())
    memory = built.artifact.manifest["memory"]
    cycles = done.estimated_cycles
    row: Row = {
        "model": name,
        "core": core,
        "instructions": done.run_instructions[0],
        "estimated_cycles": None if cycles is None else cycles // len(numbers),
        "ram_bytes": memory["ram_bytes"],
        "arena_bytes": memory["arena_bytes"],
        "stack_bytes": memory["stack_bytes"],
        "flash_bytes": memory["flash_bytes"],
        "code_bytes": memory["flash_bytes"] - memory["weight_bytes"],
        "accuracy": None,
        "float_accuracy": None,
        "equal_outputs": equal,
        "samples": len(numbers),
        "compiler": find_toolchain(core).version,
    }
    if subject.labels is not None:
        labels = subject.labels[numbers]
        row["accuracy"] = 100 * float(np.mean([result[outputs[0]].argmax() for result in got] == labels))
        row["float_accuracy"] = 100 * float(np.mean(floats == labels))
    peer = PEERS.get((name, core), {})
    for key in ("instructions", "estimated_cycles", "arena_bytes", "flash_bytes"):
        row[f"peer_{key}"] = peer.get(key)
        row[f"{key}_ratio"] = row[key] / peer[key] if key in peer and row[key] is not None else None
    return row


if __name__ == "__main__":
    main()
