"""LSTM and GRU classifiers of feature sequences, at once or step by step: Hochreiter & Schmidhuber 1997, Cho et al. 2014."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsopt import ModelSpec
from models.seeded import example, seeded

FEATURES, HIDDEN, CLASSES, STEPS = 16, 64, 6, 32


class RecurrentClassifier(nn.Module):
    """Map (B, T, features) to (B, classes) logits from what the last layer knows after the last step."""

    def __init__(self, recurrent: nn.LSTM | nn.GRU, classes: int = CLASSES) -> None:
        super().__init__()
        self.recurrent = recurrent
        self.classifier = nn.Linear(recurrent.hidden_size * (2 if recurrent.bidirectional else 1), classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify sequences."""
        y, _ = self.recurrent(x)
        return self.classifier(y[:, -1])


class StreamingClassifier(nn.Module):
    """Map one step, (1, 1, features), to (1, classes) logits; what earlier steps left is state of the module."""

    def __init__(self, layers: int, classes: int = CLASSES) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(FEATURES, HIDDEN, layers, batch_first=True)
        self.classifier = nn.Linear(HIDDEN, classes)
        self.register_buffer("hidden", torch.zeros(layers, 1, HIDDEN))
        self.register_buffer("cell", torch.zeros(layers, 1, HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        """Take the next step."""
        y, (hidden, cell) = self.recurrent(x, (self.hidden, self.cell))
        self.hidden.copy_(hidden)
        self.cell.copy_(cell)
        return self.classifier(y[:, -1])


def lstm(*, layers: int = 2, bidirectional: bool = False, seed: int = 0) -> ModelSpec:
    """Return an LSTM classifier with seeded weights and two sequences of 32 steps."""
    return _spec(nn.LSTM, layers, bidirectional, seed)


def lstm_stream(*, layers: int = 2, seed: int = 0) -> ModelSpec:
    """Return an LSTM classifier with seeded weights that takes a sequence step by step, as a sensor gives it."""
    return ModelSpec(seeded(lambda: StreamingClassifier(layers), seed), (example(1, 1, FEATURES, seed=seed),))


def gru(*, layers: int = 1, bidirectional: bool = False, seed: int = 0) -> ModelSpec:
    """Return a GRU classifier with seeded weights and two sequences of 32 steps."""
    return _spec(nn.GRU, layers, bidirectional, seed)


def _spec(kind: type[nn.LSTM | nn.GRU], layers: int, bidirectional: bool, seed: int) -> ModelSpec:
    model = seeded(
        lambda: RecurrentClassifier(kind(FEATURES, HIDDEN, layers, batch_first=True, bidirectional=bidirectional)),
        seed,
    )
    return ModelSpec(model, (example(2, STEPS, FEATURES, seed=seed),), dynamic={"x": {0: "batch"}})
