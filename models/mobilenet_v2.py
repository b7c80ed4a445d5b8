"""MobileNetV2: Sandler et al. 2018, table 2, for 1,000 classes; the rounding of channels is that of torchvision."""

from __future__ import annotations

from torch import Tensor, nn

from dsopt import ModelSpec
from models.seeded import example, seeded

# (expansion, output channels, blocks, stride of the first block)
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidual(nn.Module):
    """Widen by 1x1, filter depthwise, narrow by 1x1; add the input where the shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.is_residual = stride == 1 and inputs == outputs
        self.body = nn.Sequential(
            *([] if expansion == 1 else [_unit(inputs, hidden, 1)]),
            _unit(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, Ci, H, W) to (B, Co, H / stride, W / stride)."""
        return x + self.body(x) if self.is_residual else self.body(x)


class MobileNetV2(nn.Module):
    """Map (B, 3, H, W) images, H and W multiples of 32, to (B, classes) logits."""

    def __init__(self, width: float = 1.0, classes: int = 1000) -> None:
        super().__init__()
        channels = _rounded(32 * width)
        layers: list[nn.Module] = [_unit(3, channels, 3, 2)]
        for expansion, full_width, blocks, first_stride in STAGES:
            outputs = _rounded(full_width * width)
            for index in range(blocks):
                layers.append(InvertedResidual(channels, outputs, first_stride if index == 0 else 1, expansion))
                channels = outputs
        last = _rounded(1280 * max(1.0, width))
        self.features = nn.Sequential(*layers, _unit(channels, last, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Classify images."""
        return self.classifier(self.features(x).mean(dim=(2, 3)))


def _unit(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


def _rounded(channels: float) -> int:
    """Return the multiple of 8 nearest to `channels`, but not less than 90 % of it."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8


def mobilenet_v2(*, width: float = 1.0, side: int = 224, seed: int = 0) -> ModelSpec:
    """Return MobileNetV2 with seeded weights and two images of `side` x `side` pixels."""
    model = seeded(lambda: MobileNetV2(width), seed)
    return ModelSpec(model, (example(2, 3, side, side, seed=seed),), dynamic={"x": {0: "batch"}})
