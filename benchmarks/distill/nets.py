"""The networks and sentences of the benchmark: a deep encoder as teacher, and what is compared with its students."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import dsopt
from dsopt import ModelSpec, Program
from models import sentiment
from models.seeded import seeded


@dataclass(frozen=True)
class Scale:
    """How large all is. every: the student has each `every`-th layer.  prune: what makes it narrower.  samples: to train on, 0 for all.

    Channels are pruned with scope=local, so that widths follow from the text alone, and times can be measured without training.
    """

    width: int
    heads: int
    layers: int
    every: int
    length: int
    expansion: int
    prune: str
    samples: int = 0


FULL = Scale(256, 4, 24, 4, 64, 4, "prune{ratio=0.35,scope=local,align=16}")
QUICK = Scale(32, 2, 4, 2, 16, 2, "prune{ratio=0.3,scope=local,align=4}", samples=512)


class BagOfWords(nn.Module):
    """Add up two numbers for each word of a sentence, wherever it stands: (B, length) int64 ids to (B, 2) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.bias = nn.Embedding(sentiment.VOCABULARY, 2), nn.Parameter(torch.zeros(2))
        nn.init.zeros_(self.words.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """Classify sentences."""
        seen = (ids != sentiment.PADDING)[:, :, None].to(self.bias.dtype)
        return (self.words(ids) * seen).sum(1) + self.bias


def encoder(scale: Scale, layers: int, seed: int, dropout: float = 0.5) -> Program:
    """Return an untrained encoder of some depth."""
    net = seeded(
        lambda: sentiment.SentimentNet(scale.width, scale.heads, layers, dropout, scale.length, scale.expansion), seed
    )
    return dsopt.capture(sentiment.spec(net, seed))


def bag_of_words(scale: Scale) -> Program:
    """Return the untrained network without any order."""
    ids = torch.full((2, scale.length), sentiment.FIRST_WORD)
    return dsopt.capture(ModelSpec(BagOfWords().eval(), (ids,), dynamic={"ids": {0: "batch"}}))


def read_sentences(assets: Path, scale: Scale) -> sentiment.Sst2:
    """Read data/sst2 of the assets."""
    data = sentiment.load_sst2(assets / "data" / "sst2", scale.length)
    count = scale.samples or len(data.y_train)
    return data._replace(x_train=data.x_train[:count], y_train=data.y_train[:count])


def batches(data: sentiment.Sst2, size: int = 64) -> DataLoader[Any]:
    """Return shuffled batches in which some words are made unknown, others each time."""

    def together(rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        ids, labels = (torch.stack(each) for each in zip(*rows, strict=True))
        return sentiment.drop_words(ids), labels

    return DataLoader(TensorDataset(data.x_train, data.y_train), size, shuffle=True, collate_fn=together)
