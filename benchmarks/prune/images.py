"""Pruning on real data: networks for CIFAR-10 (as JPEG), trained, pruned, taught again by what they were, and rounded to 8 bits.

A row for each network, method and share of parameters removed, on 10,000 test images:

float         as trained
pruned        with that share of its parameters gone, and trained on: labels, and logits of the float network
int8          the same, trained with quantisation; the generated code's answers
scratch       the shape of the pruned network from fresh weights, trained as long on labels
uniform       a network of the same kind and size, all layers equally narrower, trained as long on labels

accuracy, spread: percent, mean and standard deviation over the seeds.  drop: points below float, the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import dsopt
from benchmarks.harness import Row, progress
from benchmarks.kept import kept
from benchmarks.prune.image_nets import NETWORKS, Make, captured, width_of_size
from benchmarks.quantize.images import read_jpegs, vary
from dsopt import PassManager, Program, parse_pipeline
from dsopt.runtime import Session
from dsopt.train import distill, qat, taught_loss

RATIOS = (0.4, 0.6, 0.8)
INT8_RATIO = 0.6
"""The share at which the pruned network is rounded, too, and its shape trained from scratch."""

BATCH = 128


@dataclass(frozen=True)
class Plan:
    """How long each is trained. images: to train on and to judge on, None for all."""

    epochs: int = 12
    further_epochs: int = 8
    int8_epochs: int = 2
    seeds: int = 5
    images: int | None = None
    ratios: Sequence[float] = RATIOS
    networks: Sequence[str] = tuple(NETWORKS)


QUICK = Plan(1, 1, 1, 1, 512, (INT8_RATIO,), ("resnet8",))


@dataclass(frozen=True)
class Images:
    """Pixels (N, 3, 32, 32) of 0 to 255, and labels."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor

    @staticmethod
    def read(assets: Path, most: int | None) -> Images:
        """Read both sets, the first `most` of each. Needs Pillow."""
        found = [read_jpegs(assets / "data" / f"cifar10_{part}_jpeg.npz") for part in ("train", "test")]
        (x, y), (x_test, y_test) = (_some(*each, most) for each in found)
        return Images(x, y, x_test, y_test)

    def loader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return batches, mirrored and moved."""
        return DataLoader(TensorDataset(self.x, self.y), BATCH, shuffle=True, drop_last=True, collate_fn=_varied)


def _some(x: Tensor, y: Tensor, most: int | None) -> tuple[Tensor, Tensor]:
    """Return the first images of a shuffle that is always the same: files may be sorted by class."""
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(x)))[:most]
    return x[order], y[order]


def _varied(rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images, labels = (torch.stack(each) for each in zip(*rows, strict=True))
    return vary(images), labels


def image_rows(assets: Path, plan: Plan, work: Path | None) -> list[Row]:
    """Train and judge all networks. work: a folder that keeps what is done."""
    torch.set_num_threads(1)
    images = Images.read(assets, plan.images)
    rows: list[Row] = []
    for name in plan.networks:
        found: dict[tuple[str, float], list[tuple[float, int]]] = {}
        for seed in range(plan.seeds):
            for method, ratio, program, parameters in Trainings(images, plan, name, seed, work).programs():
                progress(f"{name}, seed {seed}: judging {method} at {ratio:g}")
                found.setdefault((method, ratio), []).append((accuracy(program, images), parameters))
        rows += _rows(name, found)
    return rows


def _rows(name: str, found: Mapping[tuple[str, float], Sequence[tuple[float, int]]]) -> list[Row]:
    whole = np.array([value for value, _ in found["float", 0.0]])
    rows: list[Row] = []
    for (method, ratio), results in found.items():
        values = np.array([value for value, _ in results])
        rows.append({
            "network": name, "method": method, "ratio": ratio, "parameters": int(np.mean([count for _, count in results])),
            "accuracy": float(values.mean()), "spread": float(values.std()), "drop": float((whole - values).mean()), "seeds": len(values),
        })  # fmt: skip
    return rows


@dataclass(frozen=True)
class Trainings:
    """All trainings of one network and seed."""

    images: Images
    plan: Plan
    name: str
    seed: int
    folder: Path | None

    def programs(self) -> Iterator[tuple[str, float, Program, int]]:
        """Yield (method, share removed, program, parameters of the float program)."""
        make, plan = NETWORKS[self.name], self.plan
        whole = self._on_labels("float", captured(make, 1.0, self.seed), plan.epochs)
        yield "float", 0.0, whole, parameters_of(whole)
        for ratio in plan.ratios:
            narrow = self._pruned(whole, ratio)
            count = parameters_of(narrow)
            yield "pruned", ratio, narrow, count
            uniform = self._uniform(make, narrow, ratio)
            yield "uniform", ratio, uniform, parameters_of(uniform)
            if ratio == INT8_RATIO:
                yield "scratch", ratio, self._scratch(narrow), count
                yield "int8", ratio, self._int8(narrow, whole), count

    def _on_labels(self, stem: str, program: Program, epochs: int) -> Program:
        def train(checkpoint: Path | None) -> Program:
            return distill(
                program, None, self.images.loader(), epochs=epochs, learning_rate=5e-3, weight_decay=1e-2, labels=1.0, logits=0.0,
                checkpoint=checkpoint, checkpoint_steps=50, seed=self.seed,
            ).program  # fmt: skip

        return self._kept(stem, train)

    def _pruned(self, whole: Program, ratio: float) -> Program:
        def train(checkpoint: Path | None) -> Program:
            narrow, _ = PassManager(parse_pipeline(f"prune{{ratio={ratio}}}")).run(whole)
            return distill(
                narrow, whole, self.images.loader(), epochs=self.plan.further_epochs, learning_rate=3e-3, weight_decay=1e-2,
                labels=0.5, logits=0.5, checkpoint=checkpoint, checkpoint_steps=50, seed=self.seed,
            ).program  # fmt: skip

        return self._kept(f"pruned-{ratio:g}", train)

    def _uniform(self, make: Make, narrow: Program, ratio: float) -> Program:
        width = width_of_size(make, parameters_of(narrow))
        epochs = self.plan.epochs + self.plan.further_epochs
        return self._on_labels(f"uniform-{ratio:g}", captured(make, width, self.seed), epochs)

    def _scratch(self, narrow: Program) -> Program:
        epochs = self.plan.epochs + self.plan.further_epochs + self.plan.int8_epochs
        return self._on_labels("scratch", fresh(narrow, self.seed), epochs)

    def _int8(self, narrow: Program, whole: Program) -> Program:
        loss = taught_loss(narrow.signature.output_tree, labels=0.5, logits=0.5, loss=cross_entropy)

        def train(checkpoint: Path | None) -> Program:
            return qat(
                narrow, self.images.loader(), loss, epochs=self.plan.int8_epochs, learning_rate=5e-4, teacher=whole,
                checkpoint=checkpoint, checkpoint_steps=50, seed=self.seed,
            ).program  # fmt: skip

        return self._kept("int8", train)

    def _kept(self, stem: str, train: Callable[[Path | None], Program]) -> Program:
        progress(f"{self.name}, seed {self.seed}: {stem}")
        return kept(self.folder, f"{self.name}-{self.seed}-{stem}", train)


def fresh(program: Program, seed: int) -> Program:
    """Return a program with the weights that its layers would begin with: torch's own for convolutions and linear layers."""
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
            pixels = images.x_test[start : start + BATCH].numpy()
            answers = session.run_flat({spec.name: pixels})[output.name].argmax(1)
            right += int((answers == images.y_test[start : start + BATCH].numpy()).sum())
    return 100 * right / len(images.y_test)


def parameters_of(program: Program) -> int:
    """Return the number of parameters."""
    names = {spec.name for spec in program.signature.weights if spec.kind == "parameter"}
    return sum(value.numel() for name, value in program.weights.items() if name in names)
