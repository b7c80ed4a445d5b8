"""A small network and its data, labelled by a rule that it can learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dsopt.frontend.export import export_module
from dsopt.ir import Program

CLASSES, WIDTH = 3, 8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Net(nn.Module):
    """Residual blocks on (B, 4)."""

    def __init__(self, blocks: int = 4) -> None:
        super().__init__()
        self.stem = nn.Linear(4, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def arrays(count: int, seed: int) -> dict[str, Any]:
    """Return inputs, and which of three directions each is nearest to."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((count, 4)).astype(np.float32)
    directions = np.random.default_rng(0).standard_normal((4, CLASSES))
    return {"x": x, "labels": (x @ directions).argmax(1)}


def net_program(blocks: int = 4, seed: int = 0) -> Program:
    """Return the untrained network, with a batch that varies."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return export_module(Net(blocks).eval(), (torch.randn(2, 4),), {}, {"x": {0: "batch"}})
