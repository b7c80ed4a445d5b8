"""Data as samples: which are for calibration and which for judging, and how they are fed to a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dsopt.errors import InputError, UsageError
from dsopt.feeds import Feed, read_npz, split_feeds
from dsopt.ir import Program

Array = npt.NDArray[Any]

LABELS = "labels"
"""The array of a data file that holds what the outputs should have been, one entry a sample."""

CALIBRATION_SAMPLES = 100
_AT_ONCE = 32
"""Samples in one run where the batch may vary, and is not bounded otherwise."""


@dataclass(frozen=True)
class Samples:
    """Inputs by name with samples along the first axis, and labels, None if there are none.

    batched: the first size of every input varies, so that samples can be run together; else an entry of an array is a run.
    rows: how many labels a run has.  bounds: the least and the largest batch.
    """

    arrays: Mapping[str, Array]
    labels: Array | None
    batched: bool
    rows: int
    count: int
    bounds: tuple[int, int] = (1, _AT_ONCE)

    def feeds(self, chosen: Sequence[int] | Array, at_once: int = _AT_ONCE) -> list[Feed]:
        """Return runs of the chosen samples, in order, `at_once` in each where the batch allows it."""
        indices = np.asarray(chosen, np.int64)
        if self.batched:
            return [
                {name: array[part] for name, array in self.arrays.items()} for part in self._batches(indices, at_once)
            ]
        return [{name: array[index] for name, array in self.arrays.items()} for index in indices]

    def _batches(self, indices: Array, at_once: int) -> list[Array]:
        least, largest = self.bounds
        step = min(max(at_once, least), largest)
        parts = [indices[start : start + step] for start in range(0, len(indices), step)]
        if parts and len(parts[-1]) < least:  # shared out evenly, so that no run is too small
            parts = np.array_split(indices, max(len(indices) // least, 1))
        if parts and not least <= len(parts[-1]) <= len(parts[0]) <= largest:
            raise UsageError(
                "DS0340", f"{len(indices)} samples cannot be cut into batches of {least} to {largest}",
                fix="give more samples, or capture the model with a batch that may be smaller",
            )  # fmt: skip
        return parts

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

    def refuse_nan(self) -> None:
        """Raise InputError naming the samples that hold NaN: whether they calibrate or not is for the seed to say, so all count."""
        named = dict(self.arrays) if self.labels is None else {**self.arrays, "the labels": self.labels}
        found = []
        for name, array in named.items():
            if np.issubdtype(array.dtype, np.floating):
                places = np.flatnonzero(np.isnan(array).reshape(len(array), -1).any(1))
                more = f" and {len(places) - 10:,} more" if len(places) > 10 else ""
                if len(places):
                    found.append(f"{name}: {', '.join(map(str, places[:10]))}{more} of {len(array):,}")
        if found:
            raise InputError(
                "DS0351", "samples of the data hold NaN", where="\n".join(found),
                fix="leave these samples out, or give them the value that your program would have",
            )  # fmt: skip

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
    bounds = next((_bounds(program, spec["shape"][0]) for spec in inputs if spec["shape"]), (1, _AT_ONCE))
    return _cut(inputs, arrays, found, bounds)


def _bounds(program: Program, size: int | str) -> tuple[int, int]:
    dim = program.dims.get(str(size))
    return (
        (1, _AT_ONCE)
        if dim is None
        else (dim.min, _AT_ONCE if dim.max is None else min(dim.max, max(_AT_ONCE, dim.min)))
    )


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


def _cut(
    inputs: Sequence[Mapping[str, Any]], arrays: Mapping[str, Array], labels: Array | None, bounds: tuple[int, int]
) -> Samples:
    shapes = {str(spec["name"]): list(spec["shape"]) for spec in inputs}
    first = {shape[0] if shape else None for shape in shapes.values()}
    is_one_run = all(array.ndim == len(shapes[name]) for name, array in arrays.items())
    counts = {len(array) for array in arrays.values() if array.ndim}
    batched = is_one_run and len(first) == 1 and isinstance(next(iter(first)), str) and len(counts) == 1
    rows = 1
    if labels is not None and labels.ndim == 0:
        raise UsageError("DS0340", "the labels are a single number", fix="give an array with one label for each sample")
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
    return Samples(arrays, labels, batched, rows, count, bounds)


def _runs(array: Array, shape: Sequence[int | str]) -> Array:
    """Return an array with its runs along the first axis."""
    if array.ndim > len(shape):
        return array
    if shape and isinstance(shape[0], int) and shape[0] > 0:
        return array.reshape(-1, shape[0], *array.shape[1:])
    return array[None]
