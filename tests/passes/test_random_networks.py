"""Whatever network hypothesis builds, the default passes keep its numbers, its names and its varying batch."""

from __future__ import annotations

import copy

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dsopt.frontend.export import export_module
from dsopt.passes.base import PassManager, parse_pipeline

PIPELINE = parse_pipeline("canonicalize,fold-batch-norm,fuse-attention,fold-constants,fuse-activation,remove-dead-code")
ACTIVATIONS = [nn.ReLU, nn.ReLU6, nn.Hardswish, nn.GELU, nn.SiLU, nn.Tanh, nn.ELU, nn.Identity]


class Residual(nn.Module):
    def __init__(self, body: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.body, self.activation = body, activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.body(x) + x)


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    channels = draw(st.sampled_from([2, 4, 6]))
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 1)]
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["conv", "depthwise", "transposed", "residual", "dropout", "norm"]))
        activation = draw(st.sampled_from(ACTIVATIONS))()
        kernel = draw(st.sampled_from([1, 3]))
        if kind == "conv":
            width = draw(st.sampled_from([2, 4, 6]))
            layers += [
                nn.Conv2d(channels, width, kernel, padding="same", bias=draw(st.booleans())),
                nn.BatchNorm2d(width),
                activation,
            ]
            channels = width
        elif kind == "depthwise":
            layers += [
                nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels),
                nn.BatchNorm2d(channels),
                activation,
            ]
        elif kind == "transposed":
            layers += [nn.ConvTranspose2d(channels, channels, 2, groups=2), nn.BatchNorm2d(channels), activation]
        elif kind == "residual":
            body = nn.Sequential(nn.Conv2d(channels, channels, kernel, padding=kernel // 2), nn.BatchNorm2d(channels))
            layers.append(Residual(body, activation))
        else:
            layers += [nn.Dropout2d(0.3) if kind == "dropout" else nn.BatchNorm2d(channels), activation]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3)).eval()


def _randomize(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            values = (
                torch.rand(tensor.shape, generator=generator) + 0.3
                if "var" in name
                else torch.randn(tensor.shape, generator=generator) * 0.4
            )
            tensor.copy_(values)


@given(networks(), st.integers(0, 1000))
@settings(max_examples=25)
def test_the_default_passes_keep_the_numbers_of_any_network(model: nn.Module, seed: int) -> None:
    _randomize(model, seed)
    program = export_module(model, (torch.randn(2, 3, 6, 6),), {}, {"input": {0: "batch"}})
    result, _ = PassManager(PIPELINE).run(program)
    assert result.signature.inputs == program.signature.inputs
    assert list(result.dims) == ["batch"]
    x = torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    want = copy.deepcopy(model).double()(x.double()).detach()
    scale = max(1.0, float(want.abs().max()))
    # Both sides round in float32 at every layer; 1e-4 of the range is far above that and far below any wrong fold.
    torch.testing.assert_close(result.run(x)[0].double() / scale, want / scale, rtol=0, atol=1e-4)
    again, records = PassManager(PIPELINE).run(result)
    assert again.text() == result.text()
    assert all(not record.changes for record in records)
