"""The two MLPerf Tiny networks with their published weights, and the samples that they are judged on.

Both are read from a folder that the user names, which holds:

    models/kws_ds_cnn.npz, models/ic_resnet8.npz    float weights, batch normalisation folded (github mlcommons/tiny, Apache-2.0)
    data/mlperf_tiny_kws01.npz                      x: (1000, 49, 10) int8, y: (1000,) (github eembc/energyrunner)
    data/cifar10_test_846.npz                       x: (846, 32, 32, 3) uint8, y: (846,) (CIFAR-10 test images)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dsopt import ModelSpec
from models.keyword_spotting import kws
from models.resnet8 import ic

# The official samples are quantised: q = round(feature / scale) + zero point.
KWS_SCALE, KWS_ZERO_POINT = 0.5847029, 83


def trained_kws(assets: Path) -> ModelSpec:
    """Return the DS-CNN with its published weights. Raises OSError or ValueError if they are missing or do not fit."""
    spec = kws(folded=True)
    _fill(spec.model, assets / "models" / "kws_ds_cnn.npz", _kws_name)
    return spec


def trained_ic(assets: Path) -> ModelSpec:
    """Return the ResNet-8 with its published weights. Raises OSError or ValueError if they are missing or do not fit."""
    spec = ic(folded=True)
    _fill(spec.model, assets / "models" / "ic_resnet8.npz", _ic_name)
    return spec


def kws_samples(assets: Path) -> tuple[Tensor, Tensor]:
    """Return the 1,000 official samples: (1000, 1, 49, 10) float32 features and (1000,) int64 labels."""
    with np.load(assets / "data" / "mlperf_tiny_kws01.npz") as arrays:
        features = (arrays["x"].astype(np.float32) - KWS_ZERO_POINT) * np.float32(KWS_SCALE)
        return torch.from_numpy(features[:, None]), torch.from_numpy(arrays["y"].astype(np.int64))


def ic_samples(assets: Path) -> tuple[Tensor, Tensor]:
    """Return 846 CIFAR-10 test images: (846, 3, 32, 32) float32 pixels, 0 to 255, and (846,) int64 labels."""
    with np.load(assets / "data" / "cifar10_test_846.npz") as arrays:
        pixels = arrays["x"].transpose(0, 3, 1, 2).astype(np.float32)
        return torch.from_numpy(pixels), torch.from_numpy(arrays["y"].astype(np.int64))


def _kws_name(name: str) -> str:
    """Name the stored array of a parameter: the file counts all layers of one sequence, with convolutions at 1, 3, 5, ..."""
    if name.startswith("classifier."):
        return name
    leaf = name.rpartition(".")[2]
    if name.startswith("stem."):
        return f"features.1.{leaf}"
    match = re.match(r"blocks\.(\d)\.(\d)\.", name)
    assert match, name
    block, part = int(match[1]), int(match[2])
    return f"features.{3 + 4 * block + 2 * part}.{leaf}"


def _ic_name(name: str) -> str:
    """Name the stored array of a parameter: the file has no module around a convolution but a pad before each first one."""
    if name.startswith("stem."):
        return f"stem.{name.rpartition('.')[2]}"
    return name.replace("conv1.conv.", "conv1.1.").replace(".conv.", ".")


def _fill(model: nn.Module, path: Path, stored_name: Callable[[str], str]) -> None:
    with np.load(path) as arrays:
        weights = {name: torch.from_numpy(arrays[stored_name(name)]) for name in model.state_dict()}
        if len(weights) != len(arrays.files):
            raise ValueError(f"{path} holds {len(arrays.files)} arrays and the model takes {len(weights)}")
    model.load_state_dict(weights)
