"""Image classification: the ResNet-8 of MLPerf Tiny on 32x32 images, 10 classes.

Structure: github mlcommons/tiny, benchmark/training/image_classification/keras_model.py (resnet_v1_eembc). Its 1x1
shortcuts have no batch normalisation.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dsopt import ModelSpec
from models.same_padding import SameConv2d
from models.seeded import example, seeded


class Block(nn.Module):
    """Residual block: (B, Ci, H, H) -> (B, Co, H / stride, H / stride)."""

    def __init__(self, inputs: int, outputs: int, side: int, stride: int, folded: bool) -> None:
        super().__init__()
        before, after = (side, side), (side // stride, side // stride)
        self.conv1 = SameConv2d(inputs, outputs, (3, 3), before, stride=stride)
        self.norm1 = _norm(outputs, folded)
        self.conv2 = SameConv2d(outputs, outputs, (3, 3), after)
        self.norm2 = _norm(outputs, folded)
        self.shortcut = SameConv2d(inputs, outputs, (1, 1), before, stride=stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut to two convolutions."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.shortcut(x) + self.norm2(self.conv2(y)))


class ResNet8(nn.Module):
    """Map (B, 3, 32, 32) pixels, 0 to 255, to (B, 10) probabilities.

    folded: leave out batch normalisation, whose scale and shift are then in the convolutions.
    """

    def __init__(self, folded: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(SameConv2d(3, 16, (3, 3), (32, 32)), _norm(16, folded), nn.ReLU())
        self.blocks = nn.Sequential(
            Block(16, 16, 32, 1, folded), Block(16, 32, 32, 2, folded), Block(32, 64, 16, 2, folded)
        )
        self.pool = nn.AvgPool2d(8)
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images."""
        x = self.pool(self.blocks(self.stem(x))).flatten(1)
        return self.classifier(x).softmax(dim=1)


def _norm(channels: int, folded: bool) -> nn.Module:
    return nn.Identity() if folded else nn.BatchNorm2d(channels)


def ic(*, folded: bool = False, seed: int = 0) -> ModelSpec:
    """Return the ResNet-8 with seeded weights. folded: without batch normalisation, as in the published weights.

    The example is standard normal: with untrained weights, pixels up to 255 would only saturate the softmax.
    """
    model = seeded(lambda: ResNet8(folded), seed)
    return ModelSpec(model, (example(2, 3, 32, 32, seed=seed),), dynamic={"x": {0: "batch"}})
