"""fold-padding and fuse-residual: fewer nodes, the same bits, and what they leave alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import dsopt
from dsopt.ir import Program
from tests.backends.tir.integer_modules import Apply, Settings, conv, integers


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(integers(np.random.default_rng(seed), shape))


def passed(model: nn.Module, x: Tensor, pipeline: str) -> tuple[Program, Program]:
    program = dsopt.capture(model.eval(), (x,))
    return program, dsopt.PassManager(dsopt.parse_pipeline(pipeline)).run(program)[0]


def operators(program: Program) -> list[str]:
    return [str(node.target).split(".")[1] for node in program.graph.nodes if node.op == "call_function"]


class Padded(nn.Module):
    def __init__(self, layer: Apply, amounts: list[int], value: int) -> None:
        super().__init__()
        self.layer, self.amounts, self.value = layer, amounts, value

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.ops.aten.constant_pad_nd(x, self.amounts, self.value))


@given(st.lists(st.integers(0, 3), min_size=4, max_size=4), st.integers(0, 2), st.integers(1, 2), st.booleans())
def test_a_pad_with_the_zero_point_folds(amounts: list[int], padding: int, stride: int, depthwise: bool) -> None:
    shape, groups = ((4, 1, 3, 3), 4) if depthwise else ((5, 4, 3, 3), 1)
    layer = conv(shape, Settings(1, x_zero=-7), padding=(padding,), stride=(stride,), groups=groups)
    x = image(1, 4, 6, 7)
    program, folded = passed(Padded(layer, amounts, -7), x, "fold-padding")
    assert operators(folded) == ["q_conv"]
    assert torch.equal(folded.run(x)[0], program.run(x)[0])


@pytest.mark.parametrize(("amounts", "value"), [([1, 1, 1, 1], 0), ([1, -1, 0, 0], -7), ([0, 0, 0, 0, 1, 0], -7)])
def test_another_value_a_crop_or_a_pad_of_channels_stays(amounts: list[int], value: int) -> None:
    channels = 5 if len(amounts) > 4 else 4
    program, folded = passed(
        Padded(conv((3, channels, 3, 3), Settings(1, x_zero=-7)), amounts, value), image(1, 4, 6, 7), "fold-padding"
    )
    assert operators(folded) == operators(program) == ["constant_pad_nd", "q_conv"]


class Sum(nn.Module):
    """A sum of a convolution with what it convolves; `order` puts either first, `twice` reads the convolution again."""

    def __init__(self, layer: Apply, order: bool, twice: bool = False) -> None:
        super().__init__()
        self.layer, self.order, self.twice = layer, order, twice

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        a, b, zeros, factors = (
            (y, x, (5, -3), (700_001, -450_000)) if self.order else (x, y, (-3, 5), (-450_000, 700_001))
        )
        total = torch.ops.dsopt.q_add(a, b, *zeros, *factors, 20, -7, -100, 120, 8)
        return torch.cat([total, y]) if self.twice else total


@given(st.booleans(), st.integers(0, 99))
def test_a_sum_becomes_part_of_its_convolution(order: bool, seed: int) -> None:
    x = image(1, 4, 5, 6, seed=seed)
    program, fused = passed(Sum(conv((4, 4, 3, 3), Settings(seed), padding=(1,)), order), x, "fuse-residual")
    assert operators(fused) == ["q_conv_add"]
    assert torch.equal(fused.run(x)[0], program.run(x)[0])


def test_of_two_convolutions_the_later_takes_the_sum() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (conv((4, 4, 1, 1), Settings(n)) for n in (1, 2))

        def forward(self, x: Tensor) -> Tensor:
            a = self.a(x)
            return torch.ops.dsopt.q_add(a, self.b(a), 5, 5, 700_001, 450_000, 20, -7, -100, 120, 8)

    x = image(1, 4, 5, 6)
    program, fused = passed(Two(), x, "fuse-residual")
    assert operators(fused) == ["q_conv", "q_conv_add"]
    assert torch.equal(fused.run(x)[0], program.run(x)[0])


@pytest.mark.parametrize(
    "model",
    [
        Sum(conv((4, 4, 3, 3), padding=(1,)), True, twice=True),
        Sum(conv((4, 1, 3, 3), padding=(1,), groups=4), True),
        Sum(conv((4, 4, 1, 1), transposed=True), True),
    ],
)
def test_convolutions_that_are_read_twice_grouped_or_transposed_keep_their_sum(model: Sum) -> None:
    program, fused = passed(model, image(1, 4, 5, 6), "fuse-residual")
    assert operators(fused) == operators(program)
