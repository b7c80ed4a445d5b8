"""Pruning on real data: networks for CIFAR-10 (as JPEG), trained, pruned, taught again by what they were, and rounded.

A row for each network, method and share of parameters removed, on 10,000 test images:

float         as trained: seven epochs, on images of 16 pixels a side at first, of 32 at last
pruned        with that share of its parameters gone, and two epochs more: labels, and logits of the float network
int8          the same, and a third of an epoch with quantisation to 8 bits; the generated code's answers
scratch       the shape of the pruned network from fresh weights, on labels: the nine epochs of both together,
              on images of the same sizes, with one schedule
scratch-e     the same for as many epochs as the float network had: the seven (Liu et al. 2019 judge by both)
uniform       a network of the same kind and size, all layers equally narrower; trained as scratch is

accuracy, spread: percent, mean and standard deviation over the seeds.  drop: points below float of the same seed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import dsopt
from benchmarks.harness import Row, machine, progress
from benchmarks.kept import kept
from benchmarks.prune.image_data import BATCH, Batches, Images, fast_layout
from benchmarks.prune.image_nets import NETWORKS, SIDE, captured, width_of_size
from dsopt import PassManager, Program, parse_pipeline
from dsopt.runtime import Session
from dsopt.train import distill, qat, taught_loss

INT8_RATIO = 0.6
"""The share at which the pruned network is rounded, too, and its shape trained from scratch."""

METHODS = ("pruned", "int8", "scratch", "scratch-e", "uniform")
"""What is done at that share, beside float."""


@dataclass(frozen=True)
class Plan:
    """What is trained, and how long.

    sides, further_sides: of the images in each epoch of the float network, and of the pruned one.  int8_share: of an
    epoch, with quantisation.  rate: of SGD with momentum; int8_rate: of AdamW.  frontier_seeds: how many seeds get
    ratios beside INT8_RATIO.  images: to train on and to judge on, None for all.
    """

    sides: Sequence[int] = (16, 16, 16, 16, 16, 24, 32)
    further_sides: Sequence[int] = (24, 32)
    int8_share: float = 0.3
    rate: float = 0.2
    further_rate: float = 0.1
    int8_rate: float = 5e-4
    seeds: int = 5
    frontier_seeds: int = 1
    images: int | None = None
    ratios: Sequence[float] = (0.4, INT8_RATIO, 0.8)
    networks: Sequence[str] = tuple(NETWORKS)


QUICK = Plan((16, 32), (32,), 1.0, seeds=1, images=512, ratios=(INT8_RATIO,), networks=("resnet8",))


@dataclass(frozen=True)
class Job:
    """One training, and judging what it gives."""

    network: str
    seed: int
    method: str
    ratio: float

    @property
    def stem(self) -> str:
        """Return the name of its files."""
        return f"{self.network}-{self.seed}-{self.method}" + (f"-{self.ratio:g}" if self.ratio else "")


def jobs(plan: Plan) -> list[Job]:
    """Return all trainings, what matters most first.

    That is what pruning and rounding lose with the first network, of all seeds; then one seed of all else; then others.
    """
    found = []
    for network in plan.networks:
        for seed in range(plan.seeds):
            found.append(Job(network, seed, "float", 0.0))
            for ratio in sorted(plan.ratios, key=lambda each: each != INT8_RATIO):
                if ratio == INT8_RATIO:
                    found += [Job(network, seed, method, ratio) for method in METHODS]
                elif seed < plan.frontier_seeds:
                    found += [Job(network, seed, method, ratio) for method in ("pruned", "uniform")]

    def rank(job: Job) -> int:
        is_core = job.ratio in (0.0, INT8_RATIO) and job.method != "uniform"
        if is_core and job.network == plan.networks[0]:
            return 0
        if job.seed == 0:
            return 1 if job.ratio in (0.0, INT8_RATIO) else 2
        return 3

    return sorted(found, key=rank)


def image_rows(
    assets: Path, plan: Plan, work: Path | None, hours: float | None = None, known: Sequence[Row] = ()
) -> tuple[list[Row], list[Row]]:
    """Train and judge all networks. Returns rows, and a row for each training.

    work: a folder that keeps what is done.  hours: after which no training is begun; what is not done is in no row.
    known: trainings of an earlier run of the same plan, which are not done again.
    """
    torch.set_num_threads(1)
    end = None if hours is None else time.monotonic() + 3600 * hours
    earlier = {Job(**{name: each[name] for name in Job.__annotations__}): each for each in known}
    trainings = Trainings(Images.read(assets, plan.images), plan, work, earlier)
    done: list[Row] = []
    for job in jobs(plan):
        is_late = end is not None and time.monotonic() >= end
        result = trainings.known(job) if is_late else trainings.result(job)
        done += [] if result is None else [result]
    # what this plan does not ask for is not lost: further seeds, other networks
    done += [row for job, row in earlier.items() if job not in set(jobs(plan))]
    return summary(done), done


def summary(trainings: Sequence[Row]) -> list[Row]:
    """Return a row for each network, method and ratio: the mean over its seeds."""
    found: dict[tuple[str, str, float], list[Row]] = {}
    for training in trainings:
        found.setdefault((training["network"], training["method"], training["ratio"]), []).append(training)
    whole = {(each["network"], each["seed"]): each["accuracy"] for each in trainings if each["method"] == "float"}
    rows: list[Row] = []
    for network, method, ratio in sorted(found, key=lambda key: list(NETWORKS).index(key[0])):
        own = found[network, method, ratio]
        values = np.array([each["accuracy"] for each in own])
        drops = [whole[network, each["seed"]] - each["accuracy"] for each in own]
        rows.append({
            "network": network, "method": method, "ratio": ratio,
            "parameters": round(np.mean([each["parameters"] for each in own])), "accuracy": float(values.mean()),
            "spread": float(values.std()) if len(own) > 1 else None, "drop": float(np.mean(drops)), "seeds": len(own),
        })  # fmt: skip
    return rows


@dataclass(frozen=True)
class Trainings:
    """All trainings of a plan. folder: keeps programs and what they came to.  earlier: what others came to in an earlier run."""

    images: Images
    plan: Plan
    folder: Path | None
    earlier: Mapping[Job, Row] = field(default_factory=dict)
    _programs: dict[Job, Program] = field(default_factory=dict)

    def known(self, job: Job) -> Row | None:
        """Return what a training came to, if it is done."""
        if job in self.earlier:
            return self.earlier[job]
        path = None if self.folder is None else self.folder / f"{job.stem}.json"
        if path is None or not path.exists():
            return None
        found: Row = json.loads(path.read_text(encoding="utf-8"))
        return found

    def result(self, job: Job) -> Row:
        """Train and judge, unless it is done."""
        known = self.known(job)
        if known is not None:
            return known
        start = time.process_time()
        program = self.program(job)
        shape = program if job.method != "int8" else self.program(Job(job.network, job.seed, "pruned", job.ratio))
        found: Row = {
            **asdict(job), "accuracy": accuracy(program, self.images), "parameters": parameters_of(shape),
            "cpu_seconds": round(time.process_time() - start), "processor": machine()["processor"],
        }  # fmt: skip
        progress(f"{job.stem}: {found['accuracy']:.2f} %, {found['cpu_seconds']} s")
        if self.folder is not None:
            (self.folder / f"{job.stem}.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
        return found

    def program(self, job: Job) -> Program:
        """Return what a training gives; others that it begins with are done first."""
        if job not in self._programs:
            progress(job.stem)
            train = {
                "float": self._float, "pruned": self._pruned, "int8": self._int8, "scratch": self._scratch,
                "scratch-e": self._scratch, "uniform": self._uniform,
            }[job.method]  # fmt: skip
            self._programs[job] = train(job)
        return self._programs[job]

    def _float(self, job: Job) -> Program:
        return self._on_labels(job, lambda: captured(NETWORKS[job.network], 1.0, job.seed), self.plan.sides)

    def _uniform(self, job: Job) -> Program:
        make = NETWORKS[job.network]
        size = parameters_of(self._shape(job))
        return self._on_labels(job, lambda: captured(make, width_of_size(make, size), job.seed), self._all_sides())

    def _scratch(self, job: Job) -> Program:
        sides = self.plan.sides if job.method == "scratch-e" else self._all_sides()
        return self._on_labels(job, lambda: fresh(self._shape(job), job.seed), sides)

    def _shape(self, job: Job) -> Program:
        """Return the network of a seed, pruned and not trained again."""
        whole = self.program(Job(job.network, job.seed, "float", 0.0))
        return PassManager(parse_pipeline(f"prune{{ratio={job.ratio}}}")).run(whole)[0]

    def _all_sides(self) -> list[int]:
        return sorted([*self.plan.sides, *self.plan.further_sides])

    def _batches(self, program: Program, sides: Sequence[int], job: Job, share: float = 1.0) -> Batches:
        return Batches(self.images, sides, job.seed, share, fast_layout(program))

    def _on_labels(self, job: Job, make: Callable[[], Program], sides: Sequence[int]) -> Program:
        def train(checkpoint: Path | None) -> Program:
            program = make()
            return distill(
                program, None, self._batches(program, sides, job), epochs=len(sides), optimizer=_sgd(self.plan.rate),
                weight_decay=5e-4, labels=1.0, logits=0.0, checkpoint=checkpoint, checkpoint_steps=100, seed=job.seed,
            ).program  # fmt: skip

        return kept(self.folder, job.stem, train)

    def _pruned(self, job: Job) -> Program:
        whole, sides = self.program(Job(job.network, job.seed, "float", 0.0)), self.plan.further_sides

        def train(checkpoint: Path | None) -> Program:
            narrow = self._shape(job)
            loader, optimizer = self._batches(narrow, sides, job), _sgd(self.plan.further_rate)
            return distill(
                narrow, _folded(whole), loader, epochs=len(sides), optimizer=optimizer, weight_decay=5e-4, labels=0.5,
                logits=0.5, checkpoint=checkpoint, checkpoint_steps=100, seed=job.seed,
            ).program  # fmt: skip

        return kept(self.folder, job.stem, train)

    def _int8(self, job: Job) -> Program:
        whole = self.program(Job(job.network, job.seed, "float", 0.0))
        narrow = self.program(Job(job.network, job.seed, "pruned", job.ratio))
        loss = taught_loss(narrow.signature.output_tree, labels=0.5, logits=0.5, loss=cross_entropy)

        def train(checkpoint: Path | None) -> Program:
            loader = self._batches(narrow, (SIDE,), job, self.plan.int8_share)
            return qat(
                narrow, loader, loss, epochs=1, learning_rate=self.plan.int8_rate, teacher=_folded(whole),
                checkpoint=checkpoint, checkpoint_steps=100, seed=job.seed,
            ).program  # fmt: skip

        return kept(self.folder, job.stem, train)


def _sgd(learning_rate: float) -> Callable[[list[dict[str, Any]]], torch.optim.Optimizer]:
    return partial(torch.optim.SGD, lr=learning_rate, momentum=0.9, nesterov=True)


def _folded(teacher: Program) -> Program:
    """Return a program that says the same in less time."""
    return PassManager(parse_pipeline("fold-batch-norm")).run(teacher)[0]


def fresh(program: Program, seed: int) -> Program:
    """Return a program with weights that its layers would begin with: torch's own for matrices and kernels."""
    torch.manual_seed(seed)
    module = program.module()
    weights = module.weights_by_name()
    with torch.no_grad():
        for name, value in weights.items():
            if value.dim() > 1:
                nn.init.kaiming_uniform_(value, a=5**0.5)
            elif name.endswith("running_var") or (name.endswith("weight") and value.dim() == 1):
                value.fill_(1.0)
            elif value.is_floating_point():
                value.zero_()
    return program.with_weights(module)


def accuracy(program: Program, images: Images) -> float:
    """Return the percent of test images that the cpu artifact of a program answers rightly."""
    artifact = dsopt.compile(program, "cpu")
    right = 0
    with Session(artifact, threads=1) as session:
        (spec,) = session.inputs
        (output,) = session.outputs
        for start in range(0, len(images.y_test), BATCH):
            pixels = images.x_test[start : start + BATCH].float().numpy()
            answers = session.run_flat({spec.name: pixels})[output.name].argmax(1)
            right += int((answers == images.y_test[start : start + BATCH].numpy()).sum())
    return 100 * right / len(images.y_test)


def parameters_of(program: Program) -> int:
    """Return the number of parameters."""
    names = {spec.name for spec in program.signature.weights if spec.kind == "parameter"}
    return sum(value.numel() for name, value in program.weights.items() if name in names)
