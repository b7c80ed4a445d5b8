"""Sentiment of a sentence: a small transformer encoder (Vaswani et al. 2017, pre-norm) that trains from nothing on SST-2 in minutes.

`load_sst2` reads train.tsv and dev.tsv, lines of "sentence<TAB>0 or 1", from a folder that the user names. The sentence-level SST-2
(Socher et al. 2013) in this form: github clairett/pytorch-sentiment-classification, folder data/SST2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsopt import ModelSpec
from models.seeded import example_ids, seeded

LENGTH, CLASSES = 32, 2
PADDING, START, UNKNOWN, FIRST_WORD = 0, 1, 2, 3
VOCABULARY = 8192
"""Ids: padding, the start, words that are not known, and the rest for the most frequent words."""


class Sst2(NamedTuple):
    """Ids (N, length) int64 and labels (N,) int64, for training and held out."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor


def load_sst2(folder: Path, length: int = LENGTH) -> Sst2:
    """Read the sentences for training, and those of dev.tsv as the held-out ones, as `length` ids each.

    Raises OSError, or ValueError naming a bad line.
    """
    (train, train_labels), (test, test_labels) = (_read(folder / name) for name in ("train.tsv", "dev.tsv"))
    words = find_words(train)
    x_train, x_test = (torch.tensor([encode(sentence, words, length) for sentence in part]) for part in (train, test))
    return Sst2(x_train, torch.tensor(train_labels), x_test, torch.tensor(test_labels))


def _read(path: Path) -> tuple[list[str], list[int]]:
    sentences, labels = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        sentence, _, label = line.rpartition("\t")
        if not sentence or label not in ("0", "1"):
            raise ValueError(f"{path}:{number}: a line must be a sentence, a tab, and 0 or 1")
        sentences.append(sentence)
        labels.append(int(label))
    return sentences, labels


def find_words(sentences: Sequence[str], count: int = VOCABULARY - FIRST_WORD) -> dict[str, int]:
    """Return the ids of the `count` most frequent lowercase words that occur at least twice; of equally frequent ones, in order."""
    seen = Counter(word for sentence in sentences for word in sentence.lower().split())
    ranked = sorted((-times, word) for word, times in seen.items() if times > 1)
    return {word: FIRST_WORD + rank for rank, (_, word) in enumerate(ranked[:count])}


def encode(sentence: str, words: Mapping[str, int], length: int = LENGTH) -> list[int]:
    """Return `length` ids: the start, the words, padding. Words beyond are left out."""
    ids = [START, *(words.get(word, UNKNOWN) for word in sentence.lower().split()[: length - 1])]
    return ids + [PADDING] * (length - len(ids))


class Layer(nn.Module):
    """Mix (B, S, width) along S in `heads` heads, then apply a network of two layers to each place."""

    def __init__(self, width: int, heads: int, dropout: float, expansion: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, expansion * width), nn.Linear(expansion * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Attend to the places that `mask`, (B, 1, 1, S) bool, lets through."""
        y = self.norm1(x)
        q, k, v = (
            part(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        x = x + self.dropout(self.output(mixed))
        return x + self.dropout(self.down(F.gelu(self.up(self.norm2(x)))))


class SentimentNet(nn.Module):
    """Map (B, length) int64 ids to (B, 2) logits of an average over the words, weighted by a learned question.

    expansion: how many times wider than `width` the network of each layer is in its middle.
    """

    def __init__(
        self,
        width: int = 64,
        heads: int = 4,
        layers: int = 2,
        dropout: float = 0.5,
        length: int = LENGTH,
        expansion: int = 2,
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, width)
        self.places = nn.Parameter(torch.zeros(length, width))
        nn.init.normal_(self.words.weight, std=0.05)
        nn.init.normal_(self.places, std=0.02)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Layer(width, heads, dropout, expansion) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.question = nn.Parameter(torch.zeros(1, 1, width))
        self.classifier = nn.Linear(width, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        """Classify sentences."""
        mask = (ids != PADDING)[:, None, None, :]
        x = self.dropout(self.words(ids) + self.places)
        for layer in self.layers:
            x = layer(x, mask)
        x = self.norm(x)
        pooled = F.scaled_dot_product_attention(self.question.expand(ids.shape[0], -1, -1), x, x, attn_mask=mask[:, 0])
        return self.classifier(self.dropout(pooled.squeeze(1)))


def train(data: Sst2, *, epochs: int = 8, seed: int = 0) -> SentimentNet:
    """Train a `SentimentNet`: AdamW, batches of 64, one rise and fall of learning rates, some words made unknown. Half a minute of CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SentimentNet().train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.3)
        steps = epochs * -(-len(data.y_train) // 64)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-4, total_steps=steps, pct_start=0.1)
        for _ in range(epochs):
            for rows in torch.randperm(len(data.y_train)).split(64):
                optimizer.zero_grad()
                F.cross_entropy(model(drop_words(data.x_train[rows])), data.y_train[rows]).backward()
                optimizer.step()
                schedule.step()
    return model.eval()


def drop_words(ids: Tensor, share: float = 0.3) -> Tensor:
    """Make a share of the words unknown, drawn from torch's generator."""
    return ids.masked_fill((torch.rand(ids.shape) < share) & (ids >= FIRST_WORD), UNKNOWN)


def sst2(*, seed: int = 0) -> ModelSpec:
    """Return the network with seeded, untrained weights and two examples."""
    return spec(seeded(SentimentNet, seed), seed)


def spec(model: SentimentNet, seed: int = 0) -> ModelSpec:
    """Return a (trained) network with an example of two sentences, the second half as long, and a batch that varies."""
    length = model.places.shape[0]
    ids = example_ids(2, length, below=VOCABULARY - FIRST_WORD, seed=seed) + FIRST_WORD
    ids[:, 0] = START
    ids[1, length // 2 :] = PADDING
    return ModelSpec(model, (ids,), dynamic={"ids": {0: "batch"}})
