"""A grid that an operator fixes is not learned: the integer operator writes no other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import dsopt
from dsopt.train import qat


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).softmax(-1)


def test_training_leaves_the_grid_of_softmax_where_it_is() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = Classifier(), torch.randn(64, 4)
    batches = [(x, x[:, :3].argmax(1))] * 4
    program = dsopt.capture(model, (x[:2],), {"x": {0: "batch"}})

    def grids(learning_rate: float) -> list[tuple[float, int]]:
        result = qat(program, batches, loss, epochs=5, learning_rate=learning_rate, observe=0.0)
        rounded = [each for each in result.program.graph.nodes if each.target is torch.ops.dsopt.dequantize.default]
        return [each.args[1:3] for each in rounded]

    *before, softmax = grids(1e-9)
    *after, same = grids(0.05)
    assert same == softmax == (1 / 256, -128)
    for old, new in zip(before, after, strict=True):
        assert abs(new[0] / old[0] - 1) > 0.01


def loss(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    return F.nll_loss((output + 1e-3).log(), label)
