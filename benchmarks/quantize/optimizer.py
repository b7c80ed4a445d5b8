"""AdamW with learning rates relative to what they change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SMALLEST = 1e-3
"""Of weights and biases, so that those that start at 0 move too; a step of a grid is never 0."""


def relative_adamw(learning_rate: float) -> Callable[[list[dict[str, Any]]], torch.optim.Optimizer]:
    """Return what makes an AdamW for `dsopt.train.qat` whose steps are a share of each tensor's root mean square.

    Adam moves a number by about its learning rate, whatever the gradient. Where the weights of one layer are a hundredth
    of another's, as in a network that takes pixels of 0 to 255, and the steps of grids a tenth of the weights, no one
    rate suits all of them (Shazeer and Stern 2018, "Adafactor", section 8).
    """

    def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        own: list[dict[str, Any]] = []
        for number, group in enumerate(groups):
            least = 0.0 if number == len(groups) - 1 else SMALLEST
            own += [
                {"params": [each], "lr": learning_rate * max(_size(each), least), "weight_decay": group["weight_decay"]}
                for each in group["params"]
            ]
        return torch.optim.AdamW(own, lr=learning_rate)

    return make


def _size(tensor: Tensor) -> float:
    return float(tensor.detach().square().mean().sqrt())
