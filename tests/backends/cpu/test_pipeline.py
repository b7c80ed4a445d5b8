"""The default passes of the cpu backend leave results as they were."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsopt.backends.cpu import CpuBackend
from dsopt.passes.base import PassManager
from dsopt.target import CpuTarget
from tests.backends.cpu.cases import module
from tests.backends.cpu.harness import assert_close, executor_of, program_of, run


class Attention(nn.Module):
    """Attention as it was written before torch had an operator for it, behind a normalised convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(4, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU())
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).transpose(1, 2)
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(y).chunk(3, -1))
        return ((q @ k.transpose(-1, -2) / 2).softmax(-1) @ v).transpose(1, 2).flatten(2)


def test_the_pipeline_folds_and_fuses_and_changes_no_result() -> None:
    inputs = (torch.randn(4, 4, 6),)
    program = program_of(module(Attention), inputs, (torch.randn(6, 4, 6),))
    rewritten, records = PassManager(CpuBackend().pipeline(CpuTarget())).run(program)
    operators = {str(node.target) for node in rewritten.graph.nodes}
    assert "aten.batch_norm.default" not in operators
    assert "aten.scaled_dot_product_attention.default" in operators
    assert "aten.softmax.int" not in operators
    assert len(records) >= 4
    assert_close(run(executor_of(rewritten), rewritten, inputs), list(program.run(*inputs)))
