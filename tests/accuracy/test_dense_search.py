"""The accuracy gate leaves attention dense, layer by layer, until the metric holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dsopt
from dsopt import Gate, api
from dsopt.accuracy.dense_search import by_loss, fewest
from dsopt.errors import CheckError
from dsopt.ir import Program
from dsopt.passes.base import PassContext, PassManager, parse_pipeline
from dsopt.target import parse_target

LENGTH, WIDTH = 128, 8
SPARSE = "sparse-attention{ratio=0.5,tile=16,at_least=0,max_error=none}"


class Mixing(nn.Module):
    """Attend with more or less peaked weights."""

    def __init__(self, peak: float) -> None:
        super().__init__()
        self.peak = peak

    def forward(self, x: Tensor) -> Tensor:
        heads = x[:, None]
        return x + F.scaled_dot_product_attention(self.peak * heads, heads, heads)[:, 0]


class Net(nn.Module):
    """Two layers that lose little by sparse attention, and between them one that loses much."""

    def __init__(self) -> None:
        super().__init__()
        self.flat, self.peaked, self.last = Mixing(0.05), Mixing(20.0), Mixing(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.peaked(self.flat(x)))


@pytest.fixture
def program() -> Program:
    return dsopt.capture(Net(), (torch.randn(1, LENGTH, WIDTH),))


def _data(count: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal((count, LENGTH, WIDTH)).astype(np.float32)


def test_modules_are_ranked_by_what_they_lose(program: Program) -> None:
    context = PassContext(target=parse_target("cpu"), calibration=[{"x": torch.from_numpy(_data(1))}])
    sparse, _ = PassManager(parse_pipeline(SPARSE)).run(program, context)
    assert by_loss(sparse, context) == ["peaked", "last", "flat"]
    assert by_loss(program, context) == []


@pytest.mark.parametrize("needed", range(5))
def test_bisection_finds_the_least_number(needed: int) -> None:
    layers = ["a", "b", "c", "d"]
    found = fewest(layers, lambda some: len(some) >= max(needed, 1))
    assert found == layers[: max(needed, 1)]
    assert fewest(layers, lambda some: False) is None


def test_the_gate_keeps_dense_what_the_metric_needs(program: Program) -> None:
    build = api.build(program, "cpu", f"...,{SPARSE}", {"x": _data(12)}, gate=Gate(182.0, "snr"), calibration_samples=4)
    verdict = build.verdict
    assert verdict is not None
    assert verdict.passes
    assert verdict.kept == {"peaked": "dense attention"}
    assert verdict.drop_before is not None
    assert verdict.drop_before > 182.0 >= verdict.drop
    assert f"with dense attention (peaked), and {verdict.drop_before:.3g} points without" in verdict.summary()
    with pytest.raises(CheckError, match="even with all attention dense"):
        api.build(program, "cpu", f"...,{SPARSE}", {"x": _data(12)}, gate=Gate(20.0, "snr"), calibration_samples=4)
