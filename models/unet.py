"""A U-Net for masks: Ronneberger et al. 2015, with padded convolutions and batch normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsopt import ModelSpec
from models.seeded import example, seeded


class UNet(nn.Module):
    """Map (B, 3, H, W) images, H and W multiples of 2 ** depth, to (B, classes, H, W) logits.

    width: the channels of the finest level; each coarser one has twice as many.
    """

    def __init__(self, width: int = 16, depth: int = 3, classes: int = 2) -> None:
        super().__init__()
        widths = [width << level for level in range(depth + 1)]
        inputs = [3, *widths[:-1]]
        self.down = nn.ModuleList(_double(i, o) for i, o in zip(inputs, widths, strict=True))
        self.pool = nn.MaxPool2d(2)
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, 2) for coarse, fine in pairs)
        self.up = nn.ModuleList(_double(2 * fine, fine) for _, fine in pairs)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Score each pixel."""
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else self.pool(x))
            skips.append(x)
        skips.pop()
        for grow, block in zip(self.grow, self.up, strict=True):
            x = block(torch.cat([skips.pop(), grow(x)], dim=1))
        return self.head(x)


def _double(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [
            nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def unet(*, width: int = 16, depth: int = 3, side: int = 64, seed: int = 0) -> ModelSpec:
    """Return a U-Net with seeded weights and two images of `side` x `side` pixels."""
    model = seeded(lambda: UNet(width, depth), seed)
    return ModelSpec(model, (example(2, 3, side, side, seed=seed),), dynamic={"x": {0: "batch"}})
