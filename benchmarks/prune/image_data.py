"""CIFAR-10 (as JPEG) as batches: shuffled, mirrored and moved, and in the first epochs of a training smaller."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data.distributed import DistributedSampler

from benchmarks.prune.image_nets import SIDE
from benchmarks.quantize.images import read_jpegs, vary
from dsopt import Program

BATCH = 64


@dataclass(frozen=True)
class Images:
    """Pixels (N, 3, 32, 32) uint8, and labels."""

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


def _some(x: Tensor, y: Tensor, most: int | None) -> tuple[Tensor, Tensor]:
    """Return the first images of a shuffle that is always the same: files may be sorted by class."""
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(x)))[:most]
    return x[order].byte(), y[order]


class Batches:
    """A loader for training. sides: of the images in pixels, epoch by epoch; share: of the images that an epoch takes.

    layout: of the images in memory, as `fast_layout` says for the program that is trained on them.

    A network that pools over the whole image can learn from small ones at a fraction of the cost, so long as the last
    epoch has the images as they are: what it sees decides the sizes at which it is right (Touvron et al. 2019).
    """

    def __init__(
        self,
        images: Images,
        sides: Sequence[int],
        seed: int,
        share: float = 1.0,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self._images, self._sides, self._layout = images, sides, layout
        self._length = int(len(images.y) * share) // BATCH
        # a training tells this sampler which epoch it is in
        self.sampler = DistributedSampler(images.y, 1, 0, seed=seed)  # type: ignore[var-annotated, arg-type]

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order, side = torch.tensor(list(self.sampler)), self._sides[self.sampler.epoch]
        for batch in order.split(BATCH)[: self._length]:
            pixels = vary(self._images.x[batch].float())
            small = pixels if side == SIDE else interpolate(pixels, size=side, mode="area")
            yield small.contiguous(memory_format=self._layout), self._images.y[batch]


def fast_layout(program: Program) -> torch.memory_format:
    """Return the layout in which a program trains faster.

    That is channels last; but there torch 2.13 writes past the end of its memory in the gradient of strided 1x1
    convolutions of fewer than 8 channels.
    """
    kernels = [value for value in program.weights.values() if value.dim() == 4]
    is_narrow = any(kernel.shape[1] < 8 and kernel.shape[2:] == (1, 1) for kernel in kernels)
    return torch.contiguous_format if is_narrow else torch.channels_last
