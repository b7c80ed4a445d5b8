"""The networks and sentences of the benchmark: a deep encoder as teacher, and what is compared with its students."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


class AnyLength(sentiment.SentimentNet):
    """The network for sentences of up to its length: training need not pad all of them to the longest."""

    def forward(self, ids: Tensor) -> Tensor:
        """Classify (B, S) sentences, S at most the network's length."""
        places = self.places[: ids.shape[1]]
        mask = (ids != sentiment.PADDING)[:, None, None, :]
        x = self.dropout(self.words(ids) + places)
        for layer in self.layers:
            x = layer(x, mask)
        x = self.norm(x)
        question = self.question.expand(ids.shape[0], -1, -1)
        pooled = F.scaled_dot_product_attention(question, x, x, attn_mask=mask[:, 0])
        logits: Tensor = self.classifier(self.dropout(pooled.squeeze(1)))
        return logits


def encoder(scale: Scale, layers: int, seed: int, dropout: float = 0.5) -> Program:
    """Return an untrained encoder of some depth."""
    net = seeded(lambda: AnyLength(scale.width, scale.heads, layers, dropout, scale.length, scale.expansion), seed)
    return dsopt.capture(ModelSpec(net, sentiment.spec(net, seed).args, dynamic=_varying(scale)))


def grown(small: Program, scale: Scale, seed: int) -> Program:
    """Return an encoder of `scale.layers` layers that computes about what a trained one of fewer does (Chang et al. 2018).

    Each layer becomes `scale.every` copies of itself, each of which adds that part of what it added, as a differential equation
    is solved in smaller steps ("Multi-level residual networks from dynamical systems view", ICLR, section 4).
    """
    tall = encoder(scale, scale.layers, seed)
    module, known = tall.module(), small.module().state_dict()
    weights = {}
    for name in module.state_dict():
        parts = name.split("/")
        if parts[0] != "layers":
            weights[name] = known[name]
            continue
        weight = known["/".join(["layers", str(int(parts[1]) // scale.every), *parts[2:]])]
        weights[name] = weight / scale.every if parts[2] in ("output", "down") else weight
    module.load_state_dict(weights)
    return tall.with_weights(module)


def bag_of_words(scale: Scale) -> Program:
    """Return the untrained network without any order."""
    ids = torch.full((2, scale.length), sentiment.FIRST_WORD)
    return dsopt.capture(ModelSpec(BagOfWords().eval(), (ids,), dynamic=_varying(scale)))


def _varying(scale: Scale) -> dict[str, dict[int, object]]:
    return {"ids": {0: "batch", 1: ("length", 2, scale.length)}}


def read_sentences(assets: Path, scale: Scale) -> sentiment.Sst2:
    """Read data/sst2 of the assets."""
    data = sentiment.load_sst2(assets / "data" / "sst2", scale.length)
    count = scale.samples or len(data.y_train)
    return data._replace(x_train=data.x_train[:count], y_train=data.y_train[:count])


class Batches:
    """Shuffled batches (ids, labels) of sentences of about the same length, padded to the longest of them, some words made unknown.

    Sentences are sorted by length within pools of some batches; pools, batches and unknown words are others in each round.
    """

    def __init__(self, data: sentiment.Sst2, size: int = 64, pool: int = 16) -> None:
        self._x, self._y, self._size, self._pool = data.x_train, data.y_train, size, pool * size
        self._lengths = (data.x_train != sentiment.PADDING).sum(1)

    def __len__(self) -> int:
        """Return the number of batches of a round."""
        return (len(self._y) + self._size - 1) // self._size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield a round, drawn from torch's generator."""
        order = torch.randperm(len(self._y))
        batches = [
            batch for pool in order.split(self._pool) for batch in pool[self._lengths[pool].argsort(stable=True)].split(self._size)
        ]  # fmt: skip
        for number in torch.randperm(len(batches)).tolist():
            rows = batches[number]
            longest = max(int(self._lengths[rows].max()), 2)
            yield sentiment.drop_words(self._x[rows, :longest]), self._y[rows]
