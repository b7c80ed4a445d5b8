"""Keyword spotting: the DS-CNN of MLPerf Tiny, 12 classes from 49 frames of 10 MFCC features.

Structure: github mlcommons/tiny, benchmark/training/keyword_spotting/keras_model.py; Zhang et al. 2017, "Hello Edge".
"""

from __future__ import annotations

from torch import Tensor, nn

from dsopt import ModelSpec
from models.same_padding import SameConv2d
from models.seeded import example, seeded

CHANNELS, CLASSES, IMAGE = 64, 12, (49, 10)


class DsCnn(nn.Module):
    """Map (B, 1, 49, 10) MFCC features to (B, 12) probabilities.

    folded: leave out batch normalisation, whose scale and shift are then in the convolutions.
    """

    def __init__(self, folded: bool = False) -> None:
        super().__init__()
        small = (25, 5)
        self.stem = _unit(SameConv2d(1, CHANNELS, (10, 4), IMAGE, stride=2), folded)
        self.stem_dropout = nn.Dropout(0.2)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    _unit(SameConv2d(CHANNELS, CHANNELS, (3, 3), small, groups=CHANNELS), folded),
                    _unit(SameConv2d(CHANNELS, CHANNELS, (1, 1), small), folded),
                )
                for _ in range(4)
            )
        )
        self.dropout = nn.Dropout(0.4)
        self.pool = nn.AvgPool2d(small)
        self.classifier = nn.Linear(CHANNELS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Classify features."""
        x = self.blocks(self.stem_dropout(self.stem(x)))
        x = self.pool(self.dropout(x)).flatten(1)
        return self.classifier(x).softmax(dim=1)


def _unit(conv: SameConv2d, folded: bool) -> nn.Sequential:
    """Convolution, batch normalisation unless it is folded, ReLU."""
    norm = [] if folded else [nn.BatchNorm2d(conv.conv.out_channels)]
    return nn.Sequential(conv, *norm, nn.ReLU())


def kws(*, folded: bool = False, seed: int = 0) -> ModelSpec:
    """Return the DS-CNN with seeded weights. folded: without batch normalisation, as in the published weights."""
    model = seeded(lambda: DsCnn(folded), seed)
    return ModelSpec(model, (example(2, 1, *IMAGE, seed=seed),), dynamic={"x": {0: "batch"}})
