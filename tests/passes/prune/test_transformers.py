"""Pruned attention and recurrent networks give what the original gives with the removed channels masked, its norms over kept ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dsopt.ir import Program
from models.bert import Bert
from models.gpt import Gpt
from tests.passes.prune.nets import ConvNext
from tests.passes.prune.oracle import masked_difference, program_of, pruned
from tests.passes.prune.transformers import IMAGE_NETS, STEP_NETS, TOKEN_NETS, TOKENS, WIDTH

EXACT = 1e-10
PIPELINES = ["prune{ratio=0.4}", "prune{ratio=0.3,of=macs,scope=local}"]


def check(program: Program, pipeline: str) -> Program:
    result, record = pruned(program, pipeline)
    assert record.changes
    assert masked_difference(program, result) <= EXACT
    return result


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("name", sorted(TOKEN_NETS))
def test_attention_over_tokens(name: str, pipeline: str) -> None:
    check(program_of(TOKEN_NETS[name](), torch.randn(2, TOKENS, WIDTH)), pipeline)


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("name", sorted(STEP_NETS))
def test_networks_over_steps(name: str, pipeline: str) -> None:
    check(program_of(STEP_NETS[name](), torch.randn(2, TOKENS, 8)), pipeline)


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("name", sorted(IMAGE_NETS))
def test_attention_over_images(name: str, pipeline: str) -> None:
    check(program_of(IMAGE_NETS[name](), torch.randn(2, 3, 8, 8)), pipeline)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_convnext(pipeline: str) -> None:
    check(program_of(ConvNext(), torch.randn(2, 3, 16, 16)), pipeline)


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("attention", ["sdpa", "matmul", "einsum"])
def test_bert_with_each_way_to_write_attention(attention: str, pipeline: str) -> None:
    model = Bert(2, 16, 2, vocabulary=20, positions=12, attention=attention)
    ids, mask = torch.randint(0, 20, (2, 7)), torch.ones(2, 7, dtype=torch.int64)
    program = program_of(
        model, ids, mask, dynamic={"ids": {0: "batch", 1: "length"}, "mask": {0: "batch", 1: "length"}}
    )
    check(program, pipeline)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_gpt_with_tied_embeddings(pipeline: str) -> None:
    model = Gpt(vocabulary=20, context=16, width=24, heads=3)
    tokens = torch.randint(0, 20, (2, 7))
    check(program_of(model, tokens, dynamic={"tokens": {0: "batch", 1: "sequence"}}), pipeline)


class Positions(nn.Module):
    """A class token for each sample, and positions cut to the length: neither says anything of the channels."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.up, self.head = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 3)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, WIDTH)), nn.Parameter(torch.randn(16, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        token = self.token.repeat(x.shape[0], 1, 1) if self.how == "repeat" else self.token.expand(x.shape[0], -1, -1)
        y = torch.cat([token, self.up(x)], 1)
        places = self.places.narrow(0, 0, y.shape[1]) if self.how == "narrow" else self.places[: y.shape[1]]
        return self.head(torch.relu(y + places).mean(1))


@pytest.mark.parametrize("how", ["repeat", "expand", "narrow"])
def test_batch_and_length_may_vary_around_tokens_and_positions(how: str) -> None:
    dynamic = {"x": {0: "batch", 1: ("length", 2, 15)}}
    program = program_of(Positions(how), torch.randn(2, TOKENS, 8), dynamic=dynamic)
    result = check(program, "prune{ratio=0.5}")
    assert result.weights["token"].shape[2] == result.weights["places"].shape[1] == WIDTH // 2
    longer = torch.randn(3, 11, 8).double()
    assert masked_difference(program, result, (longer,)) <= EXACT
