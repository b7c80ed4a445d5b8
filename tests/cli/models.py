"""Factories that the command line tests name as tests.cli.models:NAME."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dsopt import ModelSpec


class Tiny(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Linear(4, 8)
        self.second = nn.Linear(8, 3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


def tiny() -> ModelSpec:
    return ModelSpec(Tiny(0).eval(), (torch.ones(2, 4),), {}, {"x": {0: "batch"}})


def other() -> ModelSpec:
    """Return the same network but for the weights of its last layer."""
    model = Tiny(0).eval()
    with torch.no_grad():
        model.second.weight.mul_(1.5)
    return ModelSpec(model, (torch.ones(2, 4),), {}, {"x": {0: "batch"}})


class Sorted(nn.Module):
    """Uses operators that no backend has, on two lines."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.special.bessel_j0(x)
        return torch.special.airy_ai(y)


def unsupported() -> ModelSpec:
    return ModelSpec(Sorted().eval(), (torch.ones(2, 4),))


class Batches(nn.Module):
    """A batch norm that stands alone, which fold-batch-norm leaves and says so."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.relu(x))


def unfolded() -> ModelSpec:
    return ModelSpec(Batches().eval(), (torch.ones(2, 4),))


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.total.add_(x.sum(0))
        return self.total * 2


def counter() -> ModelSpec:
    return ModelSpec(Counter().eval(), (torch.ones(2, 3),))


def broken() -> Any:
    raise RuntimeError("no weights today")


def outlier() -> ModelSpec:
    """Return layers of which one cannot be rounded to 4 bits."""
    return _layers(2.0)


def plain_layers() -> ModelSpec:
    """Return layers that can be rounded."""
    return _layers(0.0)


def _layers(outliers: float) -> ModelSpec:
    from tests.accuracy.nets import Layers

    torch.manual_seed(0)
    return ModelSpec(Layers(outliers).eval(), (torch.randn(2, 16),), {}, {"x": {0: "batch"}})


class Image(nn.Module):
    """A small image classifier around a layer to be tried."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), middle, nn.AvgPool2d(4))
        self.head = nn.Linear(8 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


class Remainder(nn.Module):
    """An operator that stays in floating point."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fmod(x, 0.75)


def convolutions() -> ModelSpec:
    """Return a network with one layer that no kernel takes."""
    return _image(lambda: nn.ConvTranspose2d(8, 8, 3, padding=1))


def plain_convolutions() -> ModelSpec:
    """Return one whose layers all have kernels."""
    return _image(nn.Identity)


def half_integer() -> ModelSpec:
    """Return one with an operator in the middle that stays in floating point."""
    return _image(Remainder)


def stages() -> ModelSpec:
    """Return a network whose first values are the largest, and may be made patch by patch."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 24, 1), nn.ReLU(), nn.Conv2d(24, 8, 3, 2, 1), nn.ReLU()]
    return ModelSpec(_Stages(nn.Sequential(*layers)).eval(), (torch.randn(1, 3, 24, 24),))


def pixels() -> ModelSpec:
    """Return a network that gives an image: its values lie with channels last, its output does not."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1))
    return ModelSpec(layers.eval(), (torch.randn(1, 3, 10, 10),))


class _Stages(nn.Module):
    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


def _image(middle: Callable[[], nn.Module]) -> ModelSpec:
    torch.manual_seed(0)
    return ModelSpec(Image(middle()).eval(), (torch.randn(1, 3, 16, 16),))
