"""Visual wake words: MobileNetV1 with a quarter of the channels on 96x96 images, 2 classes, as in MLPerf Tiny.

Structure: github mlcommons/tiny, benchmark/training/visual_wake_words/vww_model.py; Howard et al. 2017.
"""

from __future__ import annotations

from torch import Tensor, nn

from dsopt import ModelSpec
from models.same_padding import SameConv2d
from models.seeded import example, seeded

# (output channels at full width, stride) of each depthwise-separable block; Howard et al. 2017, table 1.
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


class MobileNetV1(nn.Module):
    """Map (B, 3, side, side) images to (B, classes) probabilities. width: the share of the channels that is kept."""

    def __init__(self, width: float = 0.25, side: int = 96, classes: int = 2, folded: bool = False) -> None:
        super().__init__()
        channels = int(32 * width)
        layers = [_unit(SameConv2d(3, channels, (3, 3), (side, side), stride=2), folded)]
        side //= 2
        for full_width, stride in BLOCKS:
            outputs, image = int(full_width * width), (side, side)
            layers.append(_unit(SameConv2d(channels, channels, (3, 3), image, stride=stride, groups=channels), folded))
            side = -(-side // stride)
            layers.append(_unit(SameConv2d(channels, outputs, (1, 1), (side, side)), folded))
            channels = outputs
        self.features = nn.Sequential(*layers)
        self.pool = nn.AvgPool2d(side)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images."""
        return self.classifier(self.pool(self.features(x)).flatten(1)).softmax(dim=1)


def _unit(conv: SameConv2d, folded: bool) -> nn.Sequential:
    """Convolution, batch normalisation unless it is folded, ReLU."""
    norm = [] if folded else [nn.BatchNorm2d(conv.conv.out_channels)]
    return nn.Sequential(conv, *norm, nn.ReLU())


def vww(*, folded: bool = False, seed: int = 0) -> ModelSpec:
    """Return MobileNetV1-0.25 with seeded weights. folded: without batch normalisation."""
    model = seeded(lambda: MobileNetV1(folded=folded), seed)
    return ModelSpec(model, (example(2, 3, 96, 96, seed=seed),), dynamic={"x": {0: "batch"}})
