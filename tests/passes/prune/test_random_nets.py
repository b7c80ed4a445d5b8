"""Whatever network hypothesis builds, what is pruned equals the masked original, and nothing is left without channels."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dsopt.errors import UsageError
from tests.passes.prune.nets import Residual, ShuffleUnit, SqueezeExcite, conv_bn
from tests.passes.prune.oracle import masked_difference, program_of, pruned


class Joined(nn.Module):
    """Two branches side by side, the second perhaps in front."""

    def __init__(self, a: nn.Module, b: nn.Module, turned: bool) -> None:
        super().__init__()
        self.a, self.b, self.turned = a, b, turned

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.a(x), self.b(x)]
        return torch.cat(parts[::-1] if self.turned else parts, 1)


class Sliced(nn.Module):
    """Some of the channels are filtered, the others pass, in places that may not line up with anything before."""

    def __init__(self, channels: int, cut: int) -> None:
        super().__init__()
        self.cut, self.conv = cut, nn.Conv2d(channels - cut, channels - cut, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x[:, self.cut :]), x[:, : self.cut]], 1)


class Space(nn.Module):
    """Channels to space and back."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pixel_unshuffle(nn.functional.pixel_shuffle(x, 2), 2)


class Gate(nn.Module):
    """One half of the channels, in rows of two, gates the other."""

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        a, b = x.view(B, C // 2, 2, H, W).unbind(2)
        return torch.cat([a * torch.sigmoid(b), a], 1)


def _simple(kind: str, channels: int, groups: int) -> nn.Module:
    match kind:
        case "shuffle":
            return ShuffleUnit(channels)
        case "gate":
            return Gate()
        case "excite":
            return SqueezeExcite(channels)
        case "space":
            return Space()
        case "channel_shuffle":
            return nn.ChannelShuffle(groups)
    return nn.GroupNorm(groups, channels)


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    channels = draw(st.sampled_from([8, 12, 16]))
    layers: list[nn.Module] = [conv_bn(3, channels)]
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["conv", "grouped", "depthwise", "transposed", "residual", "joined", "shuffle", "gate", "sliced",
                                     "excite", "space", "channel_shuffle", "norm"]))  # fmt: skip
        width = draw(st.sampled_from([8, 12, 16]))
        groups = draw(st.sampled_from([2, 4]))
        if kind == "conv":
            layers.append(conv_bn(channels, width))
            channels = width
        elif kind == "grouped":
            layers.append(conv_bn(channels, width, groups=groups))
            channels = width
        elif kind == "depthwise":
            layers.append(nn.Conv2d(channels, 2 * channels, 3, padding=1, groups=channels))
            layers.append(conv_bn(2 * channels, channels))
        elif kind == "transposed":
            layers.append(nn.ConvTranspose2d(channels, width, 3, padding=1, groups=groups))
            channels = width
        elif kind == "residual":
            layers.append(Residual(nn.Sequential(conv_bn(channels, width, 1), nn.Conv2d(width, channels, 1))))
        elif kind == "joined":
            layers.append(
                Joined(conv_bn(channels, width), draw(st.sampled_from([nn.Identity(), nn.ReLU()])), draw(st.booleans()))
            )
            channels += width
        elif kind == "sliced":
            layers.append(Sliced(channels, draw(st.sampled_from([2, 4, 6]))))
        else:
            layers.append(_simple(kind, channels, groups))
    return nn.Sequential(*layers, nn.Conv2d(channels, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))


@given(networks(), st.integers(0, 1000), st.sampled_from(["0.2", "0.4,scope=local", "0.3,of=macs", "0.3,align=2"]))
@settings(max_examples=60)
def test_any_network_equals_the_masked_original(model: nn.Module, seed: int, options: str) -> None:
    program = program_of(model, torch.randn(2, 3, 8, 8), seed=seed)
    text = program.text()
    try:
        result, _ = pruned(program, f"prune{{ratio={options}}}")
    except UsageError as refusal:
        assert "at most" in refusal.what or refusal.code == "DS0371"
        result = program
    assert program.text() == text
    assert all(min(value.shape, default=1) > 0 for value in result.weights.values())
    assert masked_difference(program, result) <= 1e-10
