"""Tiny seeded networks whose quantisation goes well, or badly in one known layer."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import dsopt
from dsopt import Program


class Layers(nn.Module):
    """Three linear layers. In `second`, one input channel is always 0 and has weights that dwarf the others.

    outlier: the size of those weights, beside others of at most 0.18.
    """

    def __init__(self, outlier: float) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 10)
        with torch.no_grad():
            self.first.weight[0] = 0.0
            self.first.bias[0] = 0.0
            self.second.weight[:, 0] = outlier

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.relu(self.second(torch.relu(self.first(x)))))


def layers(outlier: float = 0.0, batch: int | None = None) -> Program:
    torch.manual_seed(0)
    model = Layers(outlier).eval()
    if batch is not None:
        return dsopt.capture(model, (torch.randn(batch, 16),))
    return dsopt.capture(model, (torch.randn(2, 16),), {"x": {0: "batch"}})


class Two(nn.Module):
    """Two inputs whose first sizes differ: a batch of rows, and a table that the rows are compared with."""

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return x @ table


def two() -> Program:
    return dsopt.capture(Two(), (torch.randn(2, 4), torch.randn(4, 3)))


def samples(count: int = 300, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 16)).astype(np.float32)
