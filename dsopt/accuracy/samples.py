"""Data as samples: which are for calibration and which for judging, and how they are fed to a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dsopt.errors import UsageError
from dsopt.feeds import Feed, read_npz, split_feeds
from dsopt.ir import Program

Array = npt.NDArray[Any]

LABELS = "labels"
"""The array of a data file that holds what the outputs should have been, one entry a sample."""

CALIBRATION_SAMPLES = 100
_AT_ONCE = 32
"""Samples in one run where the batch may vary."""


@dataclass(frozen=True)
class Samples:
    """Inputs by name with samples along the first axis, and labels, None if there are none.

    batched: the first size of every input varies, so that samples can be run together; else an entry of an array is a run.
    rows: how many labels a run has.
    """

    arrays: Mapping[str, Array]
    labels: Array | None
    batched: bool
    rows: int
    count: int

    def feeds(self, chosen: Sequence[int] | Array, at_once: int = _AT_ONCE) -> list[Feed]:
        """Return runs of the chosen samples, in order."""
        indices = np.asarray(chosen, np.int64)
        if self.batched:
            return [
                {name: array[indices[start : start + at_once]] for name, array in self.arrays.items()}
                for start in range(0, len(indices), at_once)
            ]
        return [{name: array[index] for name, array in self.arrays.items()} for index in indices]

    def labels_of(self, chosen: Sequence[int] | Array) -> Array | None:
        """Return the labels of the chosen samples."""
        if self.labels is None:
            return None
        indices = np.asarray(chosen, np.int64)
        if self.rows > 1:
            return self.labels.reshape(-1, self.rows, *self.labels.shape[1:])[indices].reshape(
                -1, *self.labels.shape[1:]
            )
        result: Array = self.labels[indices]
        return result

    def split(self, calibration: int, seed: int) -> tuple[Array, Array]:
        """Return the samples to calibrate on, drawn by `seed`, and the ones to judge on: the rest, or all if there is no rest."""
        order = np.random.default_rng(seed).permutation(self.count)
        first = np.sort(order[:calibration])
        rest = np.sort(order[calibration:])
        return first, rest if len(rest) else np.arange(self.count)


def read_samples(
    program: Program, data: Sequence[Feed] | Mapping[str, Array] | str | Path, labels: str = LABELS
) -> Samples:
    """Read an .npz, arrays by name, or runs as feeds, as samples of a program's inputs.

    Raises InputError naming what is missing or does not fit, UsageError if there is no sample or labels are not one a sample.
    """
    inputs = input_specs(program)
    if isinstance(data, (str, Path)):
        data = read_npz(data)
    if not isinstance(data, Mapping):
        data = _joined(program, data)
    found = data.get(labels) if labels not in {str(spec["name"]) for spec in inputs} else None
    given = {name: array for name, array in data.items() if name != labels or found is None}
    split_feeds(given, inputs)  # refuses, with all reasons, what does not fit
    if set(given) == {""} and len(inputs) == 1:
        given = {str(inputs[0]["name"]): given[""]}
    arrays = {str(spec["name"]): given[str(spec["name"])] for spec in inputs}
    return _cut(inputs, arrays, found)


def input_specs(program: Program) -> list[dict[str, Any]]:
    """Return [{"name", "shape", "dtype"}] of a program's inputs, as `split_feeds` takes them."""
    return [
        {
            "name": spec.name,
            "shape": list(program.shape(node)),
            "dtype": str(program.dtype(node)).removeprefix("torch."),
        }
        for spec, node in zip(program.signature.inputs, program.inputs, strict=True)
    ]


def _joined(program: Program, feeds: Sequence[Feed]) -> dict[str, Array]:
    """Join runs along their first axis, or along a new one where the first size of a run is fixed."""
    if not feeds:
        raise UsageError("DS0402", "the data holds no sample", fix="give at least one")
    names = [spec.name for spec in program.signature.inputs]
    missing = [name for name in names if any(name not in feed for feed in feeds)]
    if missing:
        raise UsageError(
            "DS0312", f"the data lacks the input {missing[0]!r}", fix="it must hold one array for each input"
        )
    joined = {}
    for name, node in zip(names, program.inputs, strict=True):
        shape = node.meta["val"].shape
        varies = len(shape) > 0 and not isinstance(shape[0], int)
        values = [np.asarray(feed[name]) for feed in feeds]
        joined[name] = (
            np.concatenate(values) if varies or (len(shape) and values[0].ndim == len(shape)) else np.stack(values)
        )
    return joined


def _cut(inputs: Sequence[Mapping[str, Any]], arrays: Mapping[str, Array], labels: Array | None) -> Samples:
    shapes = {str(spec["name"]): list(spec["shape"]) for spec in inputs}
    first = {shape[0] if shape else None for shape in shapes.values()}
    is_one_run = all(array.ndim == len(shapes[name]) for name, array in arrays.items())
    counts = {len(array) for array in arrays.values() if array.ndim}
    batched = is_one_run and len(first) == 1 and isinstance(next(iter(first)), str) and len(counts) == 1
    rows = 1
    if batched:
        (count,) = counts
    else:
        runs = {name: _runs(array, shapes[name]) for name, array in arrays.items()}
        count = min(len(array) for array in runs.values())
        if labels is not None and count and len(labels) % count == 0:
            rows = len(labels) // count
        arrays = runs
    if count == 0:
        raise UsageError("DS0402", "the data holds no sample", fix="give at least one")
    if labels is not None and len(labels) != count * rows:
        raise UsageError(
            "DS0340", f"the data holds {count} samples and {len(labels)} labels", fix="give one label for each row"
        )
    return Samples(arrays, labels, batched, rows, count)


def _runs(array: Array, shape: Sequence[int | str]) -> Array:
    """Return an array with its runs along the first axis."""
    if array.ndim > len(shape):
        return array
    if shape and isinstance(shape[0], int) and shape[0] > 0:
        return array.reshape(-1, shape[0], *array.shape[1:])
    return array[None]
