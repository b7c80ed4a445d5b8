"""Anomaly detection: the dense autoencoder of MLPerf Tiny over 5 frames of 128 mel bands.

Structure: github mlcommons/tiny, benchmark/training/anomaly_detection/keras_model.py.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from dsopt import ModelSpec
from models.seeded import example, seeded

FEATURES, HIDDEN, CODE = 640, 128, 8


class Autoencoder(nn.Module):
    """Reconstruct (B, 640) log-mel features. folded: leave out batch normalisation."""

    def __init__(self, folded: bool = False) -> None:
        super().__init__()
        widths = (FEATURES, *(HIDDEN,) * 4, CODE, *(HIDDEN,) * 4)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers.append(nn.Linear(inputs, outputs))
            layers += [] if folded else [nn.BatchNorm1d(outputs)]
            layers.append(nn.ReLU())
        self.layers = nn.Sequential(*layers, nn.Linear(HIDDEN, FEATURES))
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Encode and decode."""
        return self.layers(x)


def ad(*, folded: bool = False, seed: int = 0) -> ModelSpec:
    """Return the autoencoder with seeded weights. folded: without batch normalisation."""
    model = seeded(lambda: Autoencoder(folded), seed)
    return ModelSpec(model, (example(2, FEATURES, seed=seed),), dynamic={"x": {0: "batch"}})
