"""Seeded weights that keep signals alive through deep networks, and seeded example inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def seeded(build: Callable[[], M], seed: int = 0) -> M:
    """Build a module in eval mode whose weights depend on `seed` alone, leaving torch's global generator as it was.

    Convolutions get He et al. 2015's normal weights by fan-in, which also suits depthwise ones. Batch normalisation gets
    statistics, scales and shifts that are neither 0 nor 1, so that folding it wrongly changes the output.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build()
        with torch.no_grad():
            for layer in module.modules():
                if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                elif isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
                    _vary(layer)
    return module.eval()


def _vary(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
    """Move statistics, scale and shift away from their defaults; a scale set by the model's author is varied around it."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_(0.0, 0.1)
    norm.running_var.uniform_(0.5, 1.5)
    norm.weight.mul_(torch.empty_like(norm.weight).uniform_(0.8, 1.2))
    norm.bias.normal_(0.0, 0.1)


def example(*shape: int, seed: int = 0) -> Tensor:
    """Return standard normal float32 of `shape`."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def example_ids(*shape: int, below: int, seed: int = 0) -> Tensor:
    """Return int64 of `shape`, each in 0..below-1."""
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(seed))
