"""Permutations around images: what a model that takes or gives its channels last costs, and that every bit is the program's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dsopt
from dsopt import api
from dsopt.backends.mcu.kernels import special_lowerings
from dsopt.backends.tir.lower import lower
from dsopt.runtime.simulated import open_executor
from dsopt.target import McuTarget
from tests.backends.tir.host_runner import run_on_host
from tests.backends.tir.integer_modules import Settings, conv, integers
from tests.simulate.images import needs_qemu


class Before(nn.Module):
    """A convolution of a permuted input, which something else may read, too."""

    def __init__(self, layer: nn.Module, dims: tuple[int, ...], is_shared: bool = False) -> None:
        super().__init__()
        self.layer, self.dims, self.is_shared = layer, dims, is_shared

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        image = x.permute(self.dims)
        return (self.layer(image), image.flatten(1)) if self.is_shared else (self.layer(image),)


class After(nn.Module):
    """A convolution whose result is permuted."""

    def __init__(self, layer: nn.Module, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.layer, self.dims = layer, dims

    def forward(self, x: Tensor) -> Tensor:
        image: Tensor = self.layer(x)
        return image.permute(self.dims)


def square(C: int) -> nn.Module:
    return conv((6, C, 3, 3), Settings(1, x_zero=-9), padding=(1,))


def in_time(C: int) -> nn.Module:
    return conv((6, C, 3), Settings(2, x_zero=5), padding=(1,))


CASES = {
    "before": (Before(square(8), (0, 3, 1, 2)), (1, 5, 7, 8), False),
    "before_few": (Before(square(3), (0, 3, 1, 2)), (2, 5, 7, 3), False),
    "before_in_time": (Before(in_time(8), (0, 2, 1)), (1, 9, 8), False),
    "after": (After(square(8), (0, 2, 3, 1)), (1, 8, 5, 7), False),
    "after_in_time": (After(in_time(8), (0, 2, 1)), (2, 8, 9), False),
    "before_and_read_elsewhere": (Before(square(8), (0, 3, 1, 2), True), (1, 5, 7, 8), True),
    "turned": (Before(square(8), (0, 3, 2, 1)), (1, 5, 7, 8), True),
    "turned_after": (After(square(8), (0, 3, 2, 1)), (1, 8, 5, 7), True),
}
"""Model, shape of its input, and whether a copy is needed."""


@pytest.mark.parametrize("core", ["cortex-m4", "cortex-m55"])
@pytest.mark.parametrize("name", CASES)
def test_permutations_around_an_image_give_the_bits_of_the_reference(core: str, name: str, tmp_path: Path) -> None:
    model, shape, is_copied = CASES[name]
    x = torch.from_numpy(integers(np.random.default_rng(0), shape).astype(np.int8))
    program = dsopt.capture(model.eval(), (x,))
    special = special_lowerings(McuTarget(core))
    got, _ = run_on_host(program, (x,), tmp_path, special=special)
    for one, want in zip(got, program.run(x), strict=True):
        np.testing.assert_array_equal(one, want.numpy())
    assert any("permute" in kernel.name for kernel in lower(program, special).kernels) == is_copied


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU()
        )
        self.linear = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(self.features(x).mean((2, 3)))
        return y


class ChannelsLast(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.model(x.permute(0, 3, 1, 2))
        return y


@pytest.mark.mcu
@pytest.mark.parametrize("core", ["cortex-m0plus", "cortex-m4", pytest.param("cortex-m55", marks=needs_qemu)])
def test_an_input_with_channels_last_costs_no_more_than_one_with_channels_first(core: str) -> None:
    torch.manual_seed(0)
    model = Classifier().eval()
    images = [torch.randn(1, 3, 16, 16) for _ in range(4)]
    costs = []
    for net, inputs in (
        (model, images),
        (ChannelsLast(model).eval(), [each.permute(0, 2, 3, 1).contiguous() for each in images]),
    ):
        feeds = [{"x": each.numpy()} for each in inputs]
        build = api.build(dsopt.capture(net, (inputs[0],)), f"mcu:{core}", "...,quantize", feeds, io="int8")
        got = open_executor(build.artifact).run(feeds[0])
        np.testing.assert_array_equal(*got.values(), build.program.run(inputs[0])[0].numpy())
        assert not [each["function"] for each in build.artifact.manifest["layers"] if "permute" in each["function"]]
        memory = build.artifact.manifest["memory"]
        costs.append([memory[name] for name in ("instructions", "flash_bytes", "ram_bytes")])
    (first, last) = costs
    assert [got / want < 1.03 for got, want in zip(last, first, strict=True)] == [True] * 3, costs
