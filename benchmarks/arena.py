"""How small an arena is planned: public and seeded instances, many tensors, and the networks of models/ for a microcontroller.

A row for each instance and engine:

capacity       bytes that suffice where the file's name gives them, as in C.1048576.csv; else the smallest packing is looked for
bound          the largest sum of sizes alive at once, or more where the search has proven more
packed         bytes of the arena; solved: within the capacity, or else at the bound; optimal: no arena is smaller
nodes          of the search; cpu_seconds of this process, all included
greedy_bytes   the peer: buffers from the largest to the smallest, each into the lowest gap, as in TensorFlow Lite Micro's
               GreedyMemoryPlanner; ratio: ours over it

A row for each network, in float and in int8: kernels, buffers and overlays (results that may lie over an operand); given_bytes: the
arena in the order of the program, packed: in the order that is run. The peer neither overlays nor reorders.

A row for each randomly wired cell network (Watts and Strogatz graphs, as in RandWire, Xie et al. 2019): bytes alive at the worst step
in breadth-first order, in the order found, and ratio: the first over the second; optimal: no order has fewer.

--instances DIR takes files of lines id,lower,upper,size: a buffer lives during steps lower to upper - 1. Without it: rectangles of
time and bytes cut at random into buffers, which can be packed without a gap, and chains of 1,000 to 100,000 tensors.
"""

from __future__ import annotations

import argparse
import csv
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import TypeVar

import numpy as np

import dsopt
import models
from benchmarks.harness import Row, parser, progress, report
from dsopt.accuracy.job import Job
from dsopt.accuracy.samples import read_samples
from dsopt.backends.base import EmitOptions
from dsopt.backends.mcu import McuBackend
from dsopt.backends.mcu.kernels import special_lowerings
from dsopt.backends.mcu.place import place
from dsopt.backends.tir.lower import lower
from dsopt.backends.tir.program import LoopProgram
from dsopt.ir import example_inputs
from dsopt.passes.base import parse_pipeline
from dsopt.passes.memory.arena import aligned, lower_bound
from dsopt.passes.memory.liveness import Lifetime, Step, lifetimes
from dsopt.passes.memory.order import find_order
from dsopt.passes.memory.packing import Engine, pack
from dsopt.passes.memory.packing_native import native_engine
from dsopt.passes.memory.packing_twin import PythonEngine
from dsopt.target import McuTarget

NETWORKS = (
    "ad",
    "digits",
    "fd001",
    "gpt",
    "gpt_decode",
    "gru",
    "ic",
    "kws",
    "lstm",
    "mobilenet_v2",
    "sst2",
    "unet",
    "vww",
)
QUICK = ("ad", "digits", "kws")
CELLS = ((1, 33, 0), (1, 33, 1), (1, 48, 1), (2, 32, 0), (2, 32, 1), (4, 31, 0), (4, 31, 2))
"""Stages, operators of each, and seed."""
CHIP = McuTarget("cortex-m4")
T = TypeVar("T")


@dataclass(frozen=True)
class Instance:
    """Buffers by first step, end (exclusive) and bytes, and the bytes into which they should fit."""

    name: str
    first: list[int]
    end: list[int]
    size: list[int]
    capacity: int | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument(
        "--instances", type=Path, metavar="DIR", help="folder of .csv files, instead of seeded instances"
    )
    options.add_argument("--engine", choices=("c", "python", "both"), default="c", help="python: without a compiler")
    options.add_argument("--nodes", type=int, help="of the search for each instance; chosen by its size if left out")
    options.add_argument("--capacity", type=int, metavar="BYTES", help="instead of those in the names of the files")
    options.add_argument(
        "--networks", default="", metavar="ID,...", help=f"of {', '.join(NETWORKS)}; none: leave them out"
    )
    chosen = options.parse_args(arguments)
    if chosen.instances is not None and not chosen.instances.is_dir():
        options.error(f"--instances {chosen.instances} is no folder")
    engines = _engines(options, chosen.engine)
    rows = []
    for instance in read(chosen.instances, chosen.capacity) if chosen.instances else seeded(chosen.quick):
        for engine in engines:
            progress(f"{instance.name}: {len(instance.size)} buffers, {engine.name}")
            rows.append(measure(instance, engine, chosen.nodes))
    for stages, nodes, seed in () if chosen.instances else CELLS:
        rows.append(measure_cells(stages, nodes, seed))
    for name in _networks(options, chosen):
        for is_quantised in (False, True):
            progress(f"{name}: {'int8' if is_quantised else 'float'}")
            rows.append(measure_network(name, is_quantised))
    report("arena", rows, as_json=chosen.json)


def _engines(options: argparse.ArgumentParser, name: str) -> list[Engine]:
    native = native_engine()
    if native is None and name != "python":
        options.error("no C compiler was found; ask for --engine python")
    return [engine for engine in (native, PythonEngine()) if engine is not None and name in (engine.name, "both")]


def _networks(options: argparse.ArgumentParser, chosen: argparse.Namespace) -> tuple[str, ...]:
    if chosen.networks == "none" or (chosen.instances and not chosen.networks):
        return ()
    names = tuple(chosen.networks.split(",")) if chosen.networks else QUICK if chosen.quick else NETWORKS
    unknown = [name for name in names if name not in NETWORKS]
    if unknown:
        options.error(f"--networks has no {unknown[0]!r}; known: {', '.join(NETWORKS)}")
    return names


def read(folder: Path, capacity: int | None) -> Iterator[Instance]:
    """Read all .csv files of a folder, in the order of their names. Raises ValueError naming a file of other columns."""
    for path in sorted(folder.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        if not lines or not {"lower", "upper", "size"} <= set(lines[0]):
            raise ValueError(f"{path} has no columns lower, upper, size")
        columns = [[int(line[key]) for line in lines] for key in ("lower", "upper", "size")]
        named = path.stem.rpartition(".")[2]
        yield Instance(path.stem, *columns, capacity or (int(named) if named.isdecimal() else None))


def seeded(is_quick: bool) -> Iterator[Instance]:
    """Make packings without a gap, and chains of tensors of which some live long."""
    for count, seed in ((60, 5), (100, 3), (150, 3), (200, 2)):
        yield cut(count, seed)
    for count in (1_000,) if is_quick else (1_000, 10_000, 100_000):
        yield chain(count)


def cut(count: int, seed: int, capacity: int = 1 << 20) -> Instance:
    """Cut a rectangle of `count` steps and `capacity` bytes into buffers, the large ones first, at random places."""
    draw = random.Random(seed)
    parts = [(0, count, 0, capacity)]
    while len(parts) < count:
        parts.sort(key=lambda part: (part[0] - part[1]) * (part[3] - part[2]))
        first, end, low, high = parts.pop(min(int(draw.expovariate(0.25)), len(parts) - 1))
        if draw.random() < 0.5 and end - first > 1:
            middle = draw.randrange(first + 1, end)
            parts += [(first, middle, low, high), (middle, end, low, high)]
        elif high - low > 1:
            middle = draw.randrange(low + 1, high)
            parts += [(first, end, low, middle), (first, end, middle, high)]
        else:
            parts.append((first, end, low, high))
    columns = zip(*((first, end, high - low) for first, end, low, high in parts), strict=True)
    return Instance(f"cut {count}/{seed}", *map(list, columns), capacity)


def chain(count: int) -> Instance:
    """Make tensors that each begin at a step of their own; half of them end soon, the others have a long tail."""
    draw = random.Random(count)
    lives = [1 + int(draw.expovariate(0.5) if number % 2 else draw.paretovariate(1.0)) for number in range(count)]
    sizes = [int(2 ** draw.uniform(6, 20)) for _ in range(count)]
    ends = [min(number + life + 1, count + 1) for number, life in enumerate(lives)]
    return Instance(f"chain {count:,}", list(range(count)), ends, sizes)


def measure(instance: Instance, engine: Engine, nodes: int | None) -> Row:
    """Pack one instance with one engine."""
    seconds, packing = _timed(
        lambda: pack(
            instance.first, instance.end, instance.size, capacity=instance.capacity, nodes=nodes, engine=engine
        )
    )
    _judge(instance, packing.offsets.tolist(), packing.height)
    greedy = greedy_by_size(instance)
    return {
        "instance": instance.name,
        "buffers": len(instance.size),
        "capacity": instance.capacity,
        "bound": packing.bound,
        "packed": packing.height,
        "solved": packing.height <= (instance.capacity or packing.bound),
        "optimal": packing.optimal,
        "nodes": packing.nodes,
        "cpu_seconds": seconds,
        "engine": packing.engine,
        "over_bound_ratio": packing.height / packing.bound,
        "greedy_bytes": greedy,
        "ratio": packing.height / greedy,
    }


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def _judge(instance: Instance, offsets: list[int], height: int) -> None:
    """Check a packing with code of its own: bytes are cells of an array over the steps at which buffers begin."""
    steps = {step: number for number, step in enumerate(sorted(set(instance.first)))}
    alive: list[list[tuple[int, int]]] = [[] for _ in steps]
    order = sorted(steps)
    for first, end, size, offset in zip(instance.first, instance.end, instance.size, offsets, strict=True):
        assert offset >= 0
        assert offset + size <= height
        number = steps[first]
        while number < len(order) and order[number] < end:
            alive[number].append((offset, offset + size))
            number += 1
    for spans in alive:
        spans.sort()
        assert all(low[1] <= high[0] for low, high in pairwise(spans)), f"{instance.name} overlaps"


def greedy_by_size(instance: Instance) -> int:
    """Return the bytes of the peer's arena: the largest first, each at the lowest gap between those placed that it meets."""
    first, end, size = (np.asarray(each) for each in (instance.first, instance.end, instance.size))
    offsets = np.zeros(len(size), np.int64)
    buckets = _Buckets(first, end)
    for number in np.argsort(-size, kind="stable").tolist():
        spans = sorted((int(offsets[other]), int(offsets[other] + size[other])) for other in buckets.met(number))
        top = 0
        for low, high in spans:
            if low - top >= size[number]:
                break
            top = max(top, high)
        offsets[number] = top
        buckets.add(number)
    return int((offsets + size).max())


class _Buckets:
    """Placed buffers by slices of time, so that those that a buffer meets are found without looking at all."""

    def __init__(self, first: np.ndarray, end: np.ndarray) -> None:
        self._first, self._end = first.tolist(), end.tolist()
        self._start = int(first.min())
        self._width = max(1, (int(end.max()) - self._start) // max(1, len(first)))
        self._slices: dict[int, list[int]] = {}

    def _range(self, number: int) -> range:
        low, high = self._first[number] - self._start, self._end[number] - 1 - self._start
        return range(low // self._width, high // self._width + 1)

    def add(self, number: int) -> None:
        for key in self._range(number):
            self._slices.setdefault(key, []).append(number)

    def met(self, number: int) -> set[int]:
        first, end = self._first[number], self._end[number]
        return {
            other
            for key in self._range(number)
            for other in self._slices.get(key, ())
            if self._first[other] < end and first < self._end[other]
        }


def wired(stages: int, nodes: int, seed: int) -> tuple[list[Step], dict[str, int]]:
    """Make cells of `nodes` operators in breadth-first order; each has 4 neighbours on a ring, rewired with probability 0.75."""
    draw = random.Random(seed)
    steps, sizes, source = [], {"x": 1024}, "x"
    for stage in range(stages):
        edges: set[tuple[int, int]] = set()
        for number, distance in product(range(nodes), (1, 2)):
            other = (number + distance) % nodes
            while draw.random() < 0.75 or (min(number, other), max(number, other)) in edges or other == number:
                other = draw.randrange(nodes)
            edges.add((min(number, other), max(number, other)))
        reads = [sorted(low for low, high in edges if high == number) for number in range(nodes)]
        depth = [0] * nodes
        for number in range(nodes):
            depth[number] = 1 + max((depth[low] for low in reads[number]), default=0)
        for number in sorted(range(nodes), key=lambda number: (depth[number], number)):
            sizes[f"{stage}.{number}"] = draw.choice((1024, 1024, 2048))
            steps.append(Step(tuple(f"{stage}.{low}" for low in reads[number]) or (source,), (f"{stage}.{number}",)))
        ends = sorted(set(range(nodes)) - {low for low, _ in edges})
        steps.append(Step(tuple(f"{stage}.{number}" for number in ends), (f"{stage}.y",)))
        source = f"{stage}.y"
        sizes[source] = 1024
    return steps, sizes


def measure_cells(stages: int, nodes: int, seed: int) -> Row:
    """Order one network of cells."""
    steps, sizes = wired(stages, nodes, seed)
    after = [steps[-1].writes[0]]
    seconds, order = _timed(lambda: find_order(steps, sizes, ["x"], after))
    given = lower_bound(lifetimes(steps, sizes, ["x"], after))
    found = lower_bound(lifetimes([steps[number] for number in order.numbers], sizes, ["x"], after))
    assert found == order.peak_bytes
    return {
        "cells": f"{stages} x {nodes}/{seed}",
        "operators": len(steps),
        "breadth_first_peak": given,
        "peak": found,
        "ratio": given / found,
        "optimal": order.optimal,
        "cpu_seconds": seconds,
    }


def measure_network(name: str, is_quantised: bool) -> Row:
    """Place a network of models/ for a Cortex-M4."""
    loops = _loops(name, is_quantised)
    given = place(loops, reorder=False)
    seconds, placement = _timed(lambda: place(loops))
    greedy = greedy_by_size(_instance(name, given.lives.values()))
    return {
        "network": f"{name} {'int8' if is_quantised else 'float'}",
        "kernels": len(loops.kernels),
        "buffers": len(placement.lives),
        "overlays": sum(len(kernel.overlaps) for kernel in loops.kernels),
        "is_reordered": placement.program is not loops,
        "given_bytes": given.plan.arena_bytes,
        "bound": placement.plan.lower_bound_bytes,
        "packed": placement.plan.arena_bytes,
        "optimal": placement.plan.optimal,
        "cpu_seconds": seconds,
        "greedy_bytes": greedy,
        "ratio": placement.plan.arena_bytes / greedy,
    }


def _loops(name: str, is_quantised: bool) -> LoopProgram:
    """Lower a network; int8 is calibrated on one seeded input, which sets scales and no sizes."""
    program = dsopt.capture(models.build(name))
    program = program.specialize(dict.fromkeys(program.dims, 1)) if program.dims else program
    backend = McuBackend()
    samples = None
    pipeline = backend.pipeline(CHIP)
    if is_quantised:
        inputs = zip(program.signature.inputs, example_inputs(program, seed=0), strict=True)
        samples = read_samples(program, [{spec.name: value.numpy() for spec, value in inputs}], "labels")
        pipeline = (*pipeline, *parse_pipeline("quantize"))
    job = Job(program, CHIP, backend, samples, 1, EmitOptions(), 1e-4)
    return lower(job.rewrite(pipeline).program, special_lowerings(CHIP), is_quantised)


def _instance(name: str, lives: Iterable[Lifetime]) -> Instance:
    columns = zip(*((life.first, life.last + 1, aligned(life.size_bytes)) for life in lives), strict=True)
    return Instance(name, *map(list, columns))


if __name__ == "__main__":
    main()
