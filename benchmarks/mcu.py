"""Instructions, memory and agreement of int8 code on simulated microcontroller cores: the networks of MLPerf Tiny, others, or your own.

A row for each model and core:

instructions        executed in one inference, exact and repeatable; estimated_cycles is an estimate from them, where the simulator
                    knows addresses (Unicorn), and no claim
ram_bytes           arena with scratch, states, other static data and the peak of the stack together; patches: in how many pieces the
                    first layers run, because values of whole layers are more than --ram
flash_bytes         code and constants in the linked image, without the test harness; code_bytes without the constants
accuracy            of the emulated core on the labelled samples that did not calibrate, float_accuracy of the network before
equal_outputs       whether all `samples` gave the bits of the NumPy oracle on the emulated core
compile_cpu_seconds from the float program to the linked image: passes, calibration, code, compiler, emulated check; run_cpu_seconds: of
                    the emulated runs
peer_..., ..._ratio TensorFlow Lite Micro with CMSIS-NN on the reference model of MLPerf Tiny (August 2026, GCC 12.2, -O2), measured
                    in the same simulators, and ours over it

Inputs and outputs are int8, as the peer's. DIR holds models/ and data/ of models/trained.py; kws and ic have their published weights
and real samples, the others seeded ones. --model FILE with --inputs FILE.npz (an array for each input) measures another program.
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import dsopt
from benchmarks.harness import Row, parser, progress, report
from benchmarks.mcu_models import MODELS, TINY, WITH_ASSETS, Subject, own
from dsopt import api
from dsopt.backends.mcu.toolchain import find_toolchain
from dsopt.runtime import Session
from dsopt.runtime.simulated import open_executor
from dsopt.target.byte_counts import parse_bytes

Arrays = dict[str, np.ndarray]

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


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--core", default="cortex-m4", metavar="CORE,...", help="such as cortex-m4,cortex-m55")
    options.add_argument("--models", default=",".join(TINY), metavar="ID,...", help=f"of {', '.join(MODELS)}")
    options.add_argument("--model", metavar="FILE", help="another model, in place of these")
    options.add_argument(
        "--inputs", type=Path, metavar="FILE", help="its inputs: an .npz, the first dim of each counts samples"
    )
    options.add_argument("--samples", type=int, default=1000, help="at most so many are run")
    options.add_argument("--passes", default="...,quantize", help="what the model goes through")
    options.add_argument(
        "--ram", metavar="BYTES", help="what the model may use, such as 256K: first layers run in patches if need be"
    )
    options.add_argument(
        "--optimize", default="balanced", choices=("speed", "balanced", "ram", "flash"), help="what code is made for"
    )
    chosen = options.parse_args(arguments)
    torch.set_num_threads(1)  # threads that wait for each other would count as seconds of the processor
    rows: list[Row] = []
    for name, subject in _subjects(options, chosen):
        for core in chosen.core.split(","):
            ram = {} if chosen.ram is None else {"ram_bytes": parse_bytes(chosen.ram, "--ram")}
            rows.append(measure(name, subject, dsopt.McuTarget(core, **ram), chosen))
    report("mcu", rows, as_json=chosen.json)


def _subjects(options: argparse.ArgumentParser, chosen: argparse.Namespace) -> list[tuple[str, Subject]]:
    if (chosen.model is None) != (chosen.inputs is None):
        options.error("--model and --inputs belong together")
    if chosen.model is not None:
        return [(Path(chosen.model).stem, own(chosen.model, chosen.inputs))]
    names = chosen.models.split(",")
    unknown = [name for name in names if name not in MODELS]
    if unknown:
        options.error(f"--models has no {unknown[0]!r}; known: {', '.join(MODELS)}")
    if chosen.assets is None and set(names) & set(WITH_ASSETS):
        options.error("ic and kws need --assets DIR; without it, ask for --models ad,vww")
    return [(name, MODELS[name](chosen.assets)) for name in names]


def measure(name: str, subject: Subject, target: dsopt.McuTarget, chosen: argparse.Namespace) -> Row:
    """Compile for a core, run samples there, and compare each with the oracle."""
    progress(f"{name}: compiling for {target.core}")
    started = _cpu_seconds()
    calibration = [subject.feed(number) for number in range(min(subject.calibration, subject.count))]
    built = api.build(
        subject.program,
        target,
        chosen.passes,
        calibration,
        name=name.replace("-", "_"),
        io="int8",
        optimize=chosen.optimize,
    )
    compiled = _cpu_seconds()
    numbers = subject.numbers(20 if chosen.quick else chosen.samples)
    progress(f"{name}: running {len(numbers)} samples on {target.core}")
    got, instructions, cycles = _emulate(built, subject, numbers)
    ran = _cpu_seconds()
    wanted = _run(built.program, subject, numbers)
    manifest = built.artifact.manifest
    memory, patches = manifest["memory"], manifest.get("patches")
    row: Row = {
        "model": name,
        "core": target.core,
        "instructions": instructions,
        "estimated_cycles": cycles,
        "ram_bytes": memory["ram_bytes"],
        "arena_bytes": memory["arena_bytes"],
        "stack_bytes": memory["stack_bytes"],
        "flash_bytes": memory["flash_bytes"],
        "code_bytes": memory["flash_bytes"] - memory["weight_bytes"],
        "accuracy": None,
        "float_accuracy": None,
        "equal_outputs": all(
            np.array_equal(one[key], other[key]) for one, other in zip(got, wanted, strict=True) for key in other
        ),
        "samples": len(numbers),
        "compiler": find_toolchain(target.core).version,
        "patches": patches["rows"] * patches["columns"] if patches else None,
        "compile_cpu_seconds": compiled - started,
        "run_cpu_seconds": ran - compiled,
    }
    if subject.labels is not None:
        held_out = [place for place, number in enumerate(numbers) if number >= subject.calibration]
        floats = _run(subject.program, subject, numbers)
        for key, results in (("accuracy", got), ("float_accuracy", floats)):
            hits = [_class(results[place]) == subject.labels[numbers[place]] for place in held_out]
            row[key] = 100 * float(np.mean(hits)) if hits else None
    return row | _against_peer(row)


def _emulate(built: api.Build, subject: Subject, numbers: Sequence[int]) -> tuple[list[Arrays], int, int | None]:
    """Return the outputs of each sample, the instructions of the first run, and the estimated cycles of the mean one.

    Where there are states, a session keeps them from sample to sample, and both counts are of the first run.
    """
    executor, feeds = open_executor(built.artifact), [subject.feed(number) for number in numbers]
    states = built.artifact.manifest.get("states", ())
    if states:
        with Session(built.artifact) as session:
            got = [session.run_flat(feed) for feed in feeds]
        weights = {f"state.{state.name}": built.program.weights[state.name].numpy() for state in built.program.states}
        feeds = [feeds[0] | weights]
        executor.run_many(feeds)
    else:
        got = executor.run_many(feeds)
    done = executor.last_simulation
    assert done is not None
    cycles = done.estimated_cycles
    return got, done.run_instructions[0], None if cycles is None else cycles // len(feeds)


def _run(program: dsopt.Program, subject: Subject, numbers: Sequence[int]) -> list[Arrays]:
    """Return what a program itself gives; states go from each sample to the next."""
    states, found = None, []
    for number in numbers:
        feed = subject.feed(number)
        values, states = program.run_stateful(
            [torch.from_numpy(feed[spec.name]) for spec in program.signature.inputs], states
        )
        found.append({spec.name: value.numpy() for spec, value in zip(program.signature.outputs, values, strict=True)})
    return found


def _class(outputs: Arrays) -> int:
    return int(next(iter(outputs.values())).argmax())


def _cpu_seconds() -> float:
    """Return what this process and the ones that it waited for have taken of the processor."""
    taken = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in taken)


def _against_peer(row: Row) -> Row:
    peer = PEERS.get((row["model"], row["core"]), {})
    found: Row = {}
    for key in ("instructions", "estimated_cycles", "arena_bytes", "flash_bytes"):
        found[f"peer_{key}"] = peer.get(key)
        found[f"{key}_ratio"] = row[key] / peer[key] if key in peer and row[key] is not None else None
    return found


if __name__ == "__main__":
    main()
