"""Which parameters an optimizer shrinks, and the one that is made where the user makes none."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

OptimizerFactory = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
"""(groups: weights; biases and norms; scales) -> optimizer."""


def parameter_groups(
    tensors: Mapping[str, Tensor], weight_decay: float, scales: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Divide parameters: matrices and kernels decay; biases, norms and scales do not.

    tensors: by name, of which those count that are parameters.  scales: names that are a group of their own.
    """
    parameters = {name: value for name, value in tensors.items() if isinstance(value, nn.Parameter)}
    decayed = [value for name, value in parameters.items() if value.dim() > 1 and name not in scales]
    plain = [value for name, value in parameters.items() if value.dim() <= 1 and name not in scales]
    steps = [value for name, value in parameters.items() if name in scales]
    groups = [(decayed, weight_decay), (plain, 0.0), (steps, 0.0)]
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]


def make_optimizer(
    groups: list[dict[str, Any]], learning_rate: float, factory: OptimizerFactory | None
) -> torch.optim.Optimizer:
    """Return what the factory makes of the groups, or AdamW (Loshchilov and Hutter 2019)."""
    return torch.optim.AdamW(groups, lr=learning_rate) if factory is None else factory(groups)
