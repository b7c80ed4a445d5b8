"""CIFAR-10 as JPEG: read, varied, and trained on with quantisation to say what the float network says."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.quantize.optimizer import relative_adamw
from dsopt import Program
from dsopt.train import QatResult, qat

EPOCHS, LEARNING_RATE = 4, 3e-3

OPTIONS = {8: "weights=8", 4: "weights=4,int8=stem*|classifier"}
"""Of the quantisation, by bits of the weights."""


def read_jpegs(path: Path) -> tuple[Tensor, Tensor]:
    """Decode images of 32x32 pixels, one after another in `jpeg`, from `offset` on. Needs Pillow.

    Returns pixels (N, 3, 32, 32) float32, 0 to 255, and labels (N,) int64.
    """
    from PIL import Image

    with np.load(path) as arrays:
        content, offset, labels = arrays["jpeg"].tobytes(), arrays["offset"], arrays["label"].astype(np.int64)
    parts = [content[start:end] for start, end in itertools.pairwise(offset)]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(part)).convert("RGB")) for part in parts])
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()).float(), torch.from_numpy(labels)


def train_images(assets: Path, program: Program, bits: int, seed: int) -> QatResult:
    """Train a program with quantisation on the 50,000 JPEG images for training; the float program is the teacher.

    Where weights have 4 bits, those of the first and the last layer have 8, as is usual (Esser et al. 2020, section 3).
    """
    x, y = read_jpegs(assets / "data" / "cifar10_train_jpeg.npz")
    loader = DataLoader(TensorDataset(x, y), 128, shuffle=True, collate_fn=_varied)
    return qat(
        program, loader, imitation, epochs=EPOCHS, optimizer=relative_adamw(LEARNING_RATE), quantize=OPTIONS[bits],
        teacher=program, seed=seed,
    )  # fmt: skip


def _varied(rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images, labels = (torch.stack(each) for each in zip(*rows, strict=True))
    return vary(images), labels


def vary(images: Tensor) -> Tensor:
    """Mirror half of the images (B, C, H, W), and move all by up to two pixels, continuing their edges."""
    mirrored = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(-1), images)
    down, right = (int(each) for each in torch.randint(0, 5, (2,)))
    height, width = images.shape[-2:]
    return F.pad(mirrored, (2, 2, 2, 2), mode="replicate")[..., down : down + height, right : right + width]


def imitation(output: Tensor, label: Tensor, teacher: Tensor) -> Tensor:
    """Return the cross entropy between two sets of probabilities; ours are multiples of 1/256, so half of that is added."""
    return -(teacher * torch.log(output + 1 / 512)).sum(-1).mean()
