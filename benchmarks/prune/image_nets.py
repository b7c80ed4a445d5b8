"""The two networks for 32x32 images that are pruned on real data, of any width, with logits as outputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import dsopt
from dsopt import Program

SIDE, CLASSES = 32, 10

Make = Callable[[float], nn.Module]
"""(width, as a share of the network's own) -> a network with fresh weights."""


class Normalised(nn.Module):
    """Take pixels (B, 3, 32, 32) of 0 to 255 to about -2 to 2, and then through a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits (B, 10)."""
        logits: Tensor = self.network((pixels - 127.5) / 63.75)
        return logits


class ResNet(nn.Module):
    """A residual network of three blocks, as the ResNet-8 of MLPerf Tiny."""

    def __init__(self, width: float) -> None:
        super().__init__()
        stem, first, second, third = (max(1, round(width * channels)) for channels in (16, 16, 32, 64))
        self.stem = _conv(3, stem, 3)
        self.blocks = nn.Sequential(_Block(stem, first, 1), _Block(first, second, 2), _Block(second, third, 2))
        self.classifier = nn.Linear(third, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images."""
        logits: Tensor = self.classifier(self.blocks(self.stem(x)).mean((2, 3)))
        return logits


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = _conv(inputs, outputs, 3, stride)
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))
        is_same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if is_same else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.shortcut(x) + self.second(self.first(x)))


class Depthwise(nn.Module):
    """Depthwise and 1x1 convolutions in turn, as MobileNet (Howard et al. 2017) has them, for small images."""

    def __init__(self, width: float) -> None:
        super().__init__()
        plan = [(32, 1), (64, 1), (64, 2), (128, 1), (128, 2), (256, 1)]
        channels = [max(1, round(width * count)) for count, _ in plan]
        layers: list[nn.Module] = [_conv(3, channels[0], 3)]
        for before, after, (_, stride) in zip(channels, channels[1:], plan[1:], strict=False):
            layers += [_conv(before, before, 3, stride, before), _conv(before, after, 1)]
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels[-1], CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images."""
        logits: Tensor = self.classifier(self.layers(x).mean((2, 3)))
        return logits


def _conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


NETWORKS: dict[str, Make] = {"resnet8": ResNet, "depthwise": Depthwise}


def captured(make: Make, width: float, seed: int) -> Program:
    """Return a network with weights drawn by a seed."""
    torch.manual_seed(seed)
    example = (torch.zeros(2, 3, SIDE, SIDE),)
    return dsopt.capture(Normalised(make(width)).eval(), example, {"pixels": {0: "batch"}})


def width_of_size(make: Make, parameters: int) -> float:
    """Return the largest width at which a network has no more than so many parameters."""
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        count = sum(parameter.numel() for parameter in make(middle).parameters())
        low, high = (middle, high) if count <= parameters else (low, middle)
    return low
