"""ResNet-18, 50 and 152: He et al. 2015, table 1, with the stride in the 3x3 convolution as torchvision has it."""

from __future__ import annotations

from torch import Tensor, nn

from dsopt import ModelSpec
from models.seeded import example, seeded

# A stack of untrained blocks doubles its variance each; a small last scale (Goyal et al. 2017, section 5.1) prevents it.
LAST_SCALE = 0.2


class BasicBlock(nn.Module):
    """Two 3x3 convolutions: (B, Ci, H, W) -> (B, channels, H / stride, W / stride)."""

    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        nn.init.constant_(self.bn2.weight, LAST_SCALE)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut to the two convolutions."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions: (B, Ci, H, W) -> (B, 4 * channels, H / stride, W / stride)."""

    expansion = 4

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels * self.expansion)
        nn.init.constant_(self.bn3.weight, LAST_SCALE)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, channels * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut to the three convolutions."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + self.downsample(x))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """Map (B, 3, H, W) images to (B, classes) logits. depths: the blocks of the four stages."""

    def __init__(
        self, block: type[BasicBlock | Bottleneck], depths: tuple[int, int, int, int], classes: int = 1000
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        stages, inputs = [], 64
        for index, depth in enumerate(depths):
            channels = 64 << index
            blocks: list[nn.Module] = []
            for position in range(depth):
                blocks.append(block(inputs, channels, 2 if index > 0 and position == 0 else 1))
                inputs = channels * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def resnet18(*, side: int = 224, seed: int = 0) -> ModelSpec:
    """Return ResNet-18 with seeded weights and two images of `side` x `side` pixels."""
    return _spec(BasicBlock, (2, 2, 2, 2), side, seed)


def resnet50(*, side: int = 224, seed: int = 0) -> ModelSpec:
    """Return ResNet-50 with seeded weights and two images of `side` x `side` pixels."""
    return _spec(Bottleneck, (3, 4, 6, 3), side, seed)


def resnet152(*, side: int = 224, seed: int = 0) -> ModelSpec:
    """Return ResNet-152 with seeded weights and two images of `side` x `side` pixels."""
    return _spec(Bottleneck, (3, 8, 36, 3), side, seed)


def _spec(block: type[BasicBlock | Bottleneck], depths: tuple[int, int, int, int], side: int, seed: int) -> ModelSpec:
    model = seeded(lambda: ResNet(block, depths), seed)
    return ModelSpec(model, (example(2, 3, side, side, seed=seed),), dynamic={"x": {0: "batch"}})
