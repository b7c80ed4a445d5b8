"""Data for training: arrays become batches, batches become what passes calibrate on, and a hash tells one set from another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dsopt.accuracy.samples import Samples, read_samples
from dsopt.errors import UsageError
from dsopt.feeds import Feed
from dsopt.ir import Program
from dsopt.nesting import unflatten
from dsopt.train.data import mixed_seed, named_inputs, seeded, split_batch

Array = npt.NDArray[Any]
Data = str | Path | Mapping[str, Array] | Iterable[Any]
"""An .npz, arrays by name with labels among them, or a loader of (inputs, target)."""

_LOADER_BATCHES = 8
"""How many batches of a loader calibrate."""


class Batches:
    """Batches of samples, in a new order each time they are gone through, drawn from torch's generator.

    Each is (inputs, labels): inputs as the program is called, positional or by name; labels int64 or float32, None if there are none.
    The last batch of a round is left out if it is not full, because batch norm cannot train on a rest of one.
    """

    def __init__(self, program: Program, samples: Samples, size: int) -> None:
        self._program, self._samples = program, samples
        self._size = min(max(size, samples.bounds[0]), samples.count) if samples.batched else 1

    def __len__(self) -> int:
        return self._samples.count // self._size

    def __iter__(self) -> Iterator[tuple[Any, Tensor | None]]:
        order = torch.randperm(self._samples.count).numpy()
        for start in range(0, len(self) * self._size, self._size):
            chosen = order[start : start + self._size]
            (feed,) = self._feeds(chosen)
            labels = self._samples.labels_of(chosen)
            yield called_with(self._program, feed), None if labels is None else _label_tensor(labels)

    def _feeds(self, chosen: Array) -> list[Feed]:
        if not self._samples.batched:
            return self._samples.feeds(chosen)
        return [{name: array[chosen] for name, array in self._samples.arrays.items()}]


def _label_tensor(labels: Array) -> Tensor:
    kind = np.int64 if labels.dtype.kind in "iub" else np.float32
    return torch.from_numpy(np.ascontiguousarray(labels.astype(kind)))


def called_with(program: Program, feed: Feed) -> Any:
    """Return flat inputs as a loader gives them: a tuple of arguments, or {argument: value} where some are keywords only."""
    tensors = {name: torch.from_numpy(np.array(value, order="C")) for name, value in feed.items()}
    args, kwargs = unflatten(program.signature.input_tree, tensors)
    if not kwargs:
        return tuple(args)
    return {**dict(zip(program.signature.argument_names, args, strict=False)), **kwargs}


@dataclass(frozen=True)
class Training:
    """What stages train on. calibration: runs of the program's inputs by name.  digest: of the data, as far as it can be known."""

    loader: Iterable[Any]
    calibration: tuple[Feed, ...]
    digest: str
    has_labels: bool


def read_training(
    program: Program, data: Data, labels: str, batch_size: int, calibration_samples: int, seed: int
) -> Training:
    """Read the data of `compress`.

    A loader is known by its length and its first batches. Raises UsageError for a loader that can be iterated only once or gives no pairs.
    """
    if isinstance(data, (str, Path, Mapping)):
        samples = read_samples(program, data, labels)
        chosen, _ = samples.split(calibration_samples, seed)
        loader = Batches(program, samples, batch_size)
        return Training(loader, tuple(samples.feeds(chosen)), samples_digest(samples), samples.labels is not None)
    if isinstance(data, Iterator):
        raise UsageError(
            "DS0366", "the loader can be iterated only once", fix="give a list or a DataLoader, which begins again each epoch"
        )  # fmt: skip
    with seeded(mixed_seed(seed, -1), data):
        batches = [split_batch(batch) for batch in islice(data, _LOADER_BATCHES)]
    if not batches:
        raise UsageError("DS0366", "the loader gives no batch", fix="let it give (inputs, target)")
    feeds = tuple(
        {name: value.numpy() for name, value in named_inputs(program, inputs).items()} for inputs, _ in batches
    )
    digest = hashlib.sha256(f"{len(data) if isinstance(data, Sized) else ''}\n".encode())
    for feed, (_, target) in zip(feeds, batches, strict=True):
        update(digest, feed | ({"": target.numpy()} if isinstance(target, Tensor) else {}))
    return Training(data, feeds, digest.hexdigest(), batches[0][1] is not None)


def samples_digest(samples: Samples) -> str:
    """Return the hash of samples and their labels."""
    digest = hashlib.sha256()
    update(digest, samples.arrays)
    if samples.labels is not None:
        update(digest, {"labels": samples.labels})
    return digest.hexdigest()


def update(digest: hashlib._Hash, arrays: Mapping[str, Array]) -> None:
    """Add arrays to a hash, with names, dtypes and shapes."""
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
