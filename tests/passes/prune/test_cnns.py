"""Pruned convolutional networks give what the original gives with the removed channels masked."""

from __future__ import annotations

import pytest
import torch

from dsopt.ir import Program
from models.mobilenet_v2 import MobileNetV2
from models.resnet import Bottleneck, ResNet
from models.unet import UNet
from tests.passes.prune.nets import CNNS
from tests.passes.prune.oracle import masked_difference, program_of, pruned

EXACT = 1e-10


def parameters(program: Program) -> int:
    kinds = {spec.name: spec.kind for spec in program.signature.weights}
    return sum(value.numel() for name, value in program.weights.items() if kinds.get(name) == "parameter")


@pytest.mark.parametrize("name", sorted(CNNS))
@pytest.mark.parametrize(
    "pipeline", ["prune{ratio=0.5}", "prune{ratio=0.4,scope=local,score=l2}", "prune{ratio=0.3,of=macs,score=bn}"]
)
def test_a_pruned_network_equals_the_masked_original(name: str, pipeline: str) -> None:
    x = torch.randn(2, 3, 8, 8)
    program = program_of(CNNS[name](), x)
    result, record = pruned(program, pipeline)
    assert record.changes
    assert parameters(result) < parameters(program)
    assert masked_difference(program, result) <= EXACT


@pytest.mark.parametrize(
    ("model", "side"),
    [(ResNet(Bottleneck, (1, 1, 1, 1), classes=10), 32), (MobileNetV2(0.25, 10), 32), (UNet(8, 2), 16)],
    ids=["resnet", "mobilenet_v2", "unet"],
)
def test_whole_architectures_equal_the_masked_original(model: torch.nn.Module, side: int) -> None:
    program = program_of(model, torch.randn(2, 3, side, side), dynamic={"x": {0: "batch"}})
    result, _ = pruned(program, "prune{ratio=0.6}")
    assert abs(1 - parameters(result) / parameters(program) - 0.6) <= 0.005
    assert masked_difference(program, result, (torch.randn(3, 3, side, side, dtype=torch.float64),)) <= EXACT
