"""A program with sparse attention is trained by the dense one that it came from, and comes closer to it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dsopt
from dsopt import PassContext, PassManager, parse_pipeline
from dsopt.ops.sparse_attention import OPERATOR
from dsopt.train import distill

LENGTH, WIDTH, HEADS = 192, 16, 2


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.norm = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1))
        return x + 2 * self.out(F.scaled_dot_product_attention(2 * q, k, v).transpose(1, 2).flatten(2))


def _texts(count: int, seed: int) -> Tensor:
    """Return sequences in which neighbours are alike, as in speech."""
    noise = torch.randn(count, LENGTH, WIDTH, generator=torch.Generator().manual_seed(seed))
    return F.avg_pool1d(noise.transpose(1, 2), 9, 1, 4).transpose(1, 2) * 3


@pytest.mark.parametrize("tile", [16, 64])
def test_distillation_brings_sparse_attention_closer_to_dense(tile: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Layer(), Layer()).eval()
    data, held = _texts(8, 1), _texts(4, 2)
    dense = dsopt.capture(net, (data[:2],))
    name = dense.signature.inputs[0].name
    context = PassContext(calibration=[{name: data[:2]}])
    pipeline = parse_pipeline(f"sparse-attention{{keys=12,tile={tile},at_least=0,max_error=5.0}}")
    sparse, _ = PassManager(pipeline).run(dense, context)
    assert sum(node.target is OPERATOR for node in sparse.graph.nodes) == 2

    def error(program: dsopt.Program) -> float:
        parts = [(program.run(x)[0] - dense.run(x)[0]).square().sum() for x in held.split(2)]
        return float(sum(parts))

    loader = [(x, torch.zeros(2)) for x in data.split(2)]
    before = error(sparse)
    taught = distill(sparse, dense, loader, epochs=8, learning_rate=3e-3, labels=0.0, logits=0.0, hidden=1.0).program
    assert sum(node.target is OPERATOR for node in taught.graph.nodes) == 2
    assert 0 < error(taught) < 0.9 * before
