"""Small networks, each with one way in which channels hang together."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Head(nn.Module):
    """Average over the image and classify."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.fc = nn.Linear(inputs, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


class Dense(nn.Module):
    """DenseNet (Huang et al. 2017): every layer reads all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 12)
        self.layers = nn.ModuleList(nn.Sequential(nn.BatchNorm2d(12 + 8 * i), nn.ReLU(), nn.Conv2d(12 + 8 * i, 8, 3, padding=1))
                                    for i in range(3))  # fmt: skip
        self.head = Head(36)

    def forward(self, x: Tensor) -> Tensor:
        found = [self.stem(x)]
        for layer in self.layers:
            found.append(layer(torch.cat(found, 1)))
        return self.head(torch.cat(found, 1))


class ShuffleUnit(nn.Module):
    """ShuffleNetV2 (Ma et al. 2018): half of the channels pass, then both halves are interleaved."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            conv_bn(half, half, 1), nn.Conv2d(half, half, 3, padding=1, groups=half), nn.BatchNorm2d(half), conv_bn(half, half, 1)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        x = torch.cat((a, self.branch(b)), dim=1)
        B, C, H, W = x.shape
        return x.view(B, 2, C // 2, H, W).transpose(1, 2).contiguous().view(B, C, H, W)


class SqueezeExcite(nn.Module):
    """Hu et al. 2018."""

    def __init__(self, channels: int, kind: str = "conv") -> None:
        super().__init__()
        self.kind = kind
        make = (lambda i, o: nn.Conv2d(i, o, 1)) if kind == "conv" else nn.Linear
        self.down, self.up = make(channels, channels // 4), make(channels // 4, channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "conv":
            return x * torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        y = F.adaptive_avg_pool2d(x, 1).flatten(1)
        y = torch.sigmoid(self.up(F.relu(self.down(y))))
        return x * y.view(x.shape[0], x.shape[1], 1, 1).expand_as(x)


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class PaddedShortcut(nn.Module):
    """ResNet's option A (He et al. 2015): the shortcut is padded with zero channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv_bn(3, 8), conv_bn(8, 16), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.body(x) + F.pad(x, (0, 0, 0, 0, 4, 4)))


class ConvNext(nn.Module):
    """Liu et al. 2022: depthwise convolution, layer norm over the channels last, an MLP, a scale for each channel."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 4, 4)
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.up, self.down = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.ones(channels))
        self.final = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        x = x + (self.gamma * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)
        return self.head(self.final(x.mean((2, 3))))


class SubPixel(nn.Module):
    """Shi et al. 2016: channels become space, by the operator or by reshapes."""

    def __init__(self, by_hand: bool) -> None:
        super().__init__()
        self.by_hand = by_hand
        self.stem, self.up, self.out = conv_bn(3, 8), nn.Conv2d(8, 6 * 4, 3, padding=1), nn.Conv2d(6, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.stem(x))
        if not self.by_hand:
            return self.out(F.pixel_shuffle(y, 2))
        B, C, H, W = y.shape
        y = y.view(B, 2, 2, C // 4, H, W).permute(0, 3, 4, 1, 5, 2).reshape(B, C // 4, 2 * H, 2 * W)
        return self.out(y)


class Flattened(nn.Module):
    """Convolution, flatten, linear: each channel is a run of features."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv_bn(3, 8), nn.MaxPool2d(2), conv_bn(8, 12))
        self.head = nn.Sequential(nn.Linear(12 * 16, 24), nn.ReLU(), nn.Linear(24, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


def grouped() -> nn.Module:
    """ResNeXt's grouped convolutions (Xie et al. 2017)."""
    body = nn.Sequential(conv_bn(16, 24, 1), conv_bn(24, 24, 3, groups=4), nn.Conv2d(24, 16, 1))
    return nn.Sequential(conv_bn(3, 16), Residual(body), Head(16))


def transposed() -> nn.Module:
    """Transposed convolutions, one in groups."""
    return nn.Sequential(conv_bn(3, 12), nn.ConvTranspose2d(12, 8, 2, 2), nn.ReLU(), nn.ConvTranspose2d(8, 12, 2, 2, groups=2),
                         nn.PReLU(12), Head(12))  # fmt: skip


def group_norms() -> nn.Module:
    """Group and instance normalisation: whole groups go."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.GroupNorm(8, 16), nn.ReLU(), nn.Conv2d(16, 12, 3), nn.InstanceNorm2d(12, affine=True), Head(12)
    )  # fmt: skip


class StandardizedConv(nn.Module):
    """Weights normalised by the operator that normalises batches (Qiao et al. 2019, as written by Wightman)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.gain = conv_bn(3, 12), nn.Conv2d(12, 16, 3), nn.Parameter(torch.ones(16, 1, 1, 1))
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        w = self.conv.weight
        rows = F.batch_norm(w.reshape(1, len(w), -1), None, None, self.gain.view(-1), training=True, eps=1e-6)
        return self.head(F.conv2d(self.stem(x), rows.reshape_as(w), self.conv.bias))


class Rewritten(nn.Module):
    """A write through a view that is read again: the whole graph is made functional, and norms give their statistics, too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.groups = conv_bn(3, 16), nn.GroupNorm(4, 16)
        self.conv, self.norm, self.head = nn.Conv2d(16, 12, 3), nn.GroupNorm(1, 12), Head(12)

    def forward(self, x: Tensor) -> Tensor:
        y = self.groups(self.stem(x))
        y.flatten(1).relu_()
        return self.head(self.norm(self.conv(y)))


def mobile() -> nn.Module:
    """MobileNetV3's inverted residual (Howard et al. 2019)."""
    body = nn.Sequential(
        conv_bn(8, 24, 1), conv_bn(24, 24, 3, groups=24), SqueezeExcite(24), nn.Conv2d(24, 8, 1), nn.BatchNorm2d(8)
    )
    return nn.Sequential(conv_bn(3, 8), Residual(body), nn.Hardswish(), Head(8))


CNNS: dict[str, Callable[[], nn.Module]] = {
    "dense": Dense,
    "shuffle": lambda: nn.Sequential(conv_bn(3, 16), ShuffleUnit(16), ShuffleUnit(16), ShuffleUnit(16), Head(16)),
    "channel_shuffle": lambda: nn.Sequential(conv_bn(3, 18), nn.ChannelShuffle(3), conv_bn(18, 18, groups=3), Head(18)),
    "squeeze_excite": lambda: nn.Sequential(conv_bn(3, 16), SqueezeExcite(16, "linear"), conv_bn(16, 8), SqueezeExcite(8), Head(8)),
    "padded_shortcut": PaddedShortcut,
    "sub_pixel": lambda: SubPixel(by_hand=False),
    "sub_pixel_by_hand": lambda: SubPixel(by_hand=True),
    "flattened": Flattened,
    "grouped": grouped,
    "transposed": transposed,
    "group_norms": group_norms,
    "mobile": mobile,
    "rewritten": Rewritten,
    "standardized": StandardizedConv,
}  # fmt: skip
"""Networks on (B, 3, 8, 8)."""
