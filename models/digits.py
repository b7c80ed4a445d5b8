"""Handwritten digits of 8x8 pixels: a small convolutional network that trains in seconds on scikit-learn's data."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsopt import ModelSpec
from models.seeded import example, seeded

CLASSES = 10


class Digits(NamedTuple):
    """Images (N, 1, 8, 8) float32 in 0..1 and labels (N,) int64, for training and held out."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor


class DigitsNet(nn.Module):
    """Map (B, 1, 8, 8) images to (B, 10) logits."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(2 * width * 16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images."""
        return self.classifier(self.dropout(self.features(x).flatten(1)))


def load_digits(held_out: int = 360) -> Digits:
    """Read scikit-learn's 1,797 digits and split them by class, the same way each time. Needs scikit-learn."""
    from sklearn.datasets import load_digits as read
    from sklearn.model_selection import train_test_split

    data = read()
    images = (data.images[:, None] / 16.0).astype("float32")
    parts = train_test_split(images, data.target, test_size=held_out, random_state=0, stratify=data.target)
    x_train, x_test, y_train, y_test = (torch.from_numpy(part) for part in parts)
    return Digits(x_train, y_train.long(), x_test, y_test.long())


def train(data: Digits, *, epochs: int = 20, seed: int = 0) -> DigitsNet:
    """Train a `DigitsNet` on the training part: Adam, batches of 64, one cosine of learning rates. About 3 s of CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DigitsNet().train()
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        for _ in range(epochs):
            for rows in torch.randperm(len(data.y_train)).split(64):
                optimizer.zero_grad()
                F.cross_entropy(model(data.x_train[rows]), data.y_train[rows]).backward()
                optimizer.step()
            schedule.step()
    return model.eval()


def digits(*, seed: int = 0) -> ModelSpec:
    """Return the network with seeded, untrained weights and two examples."""
    return spec(seeded(DigitsNet, seed), seed)


def spec(model: DigitsNet, seed: int = 0) -> ModelSpec:
    """Return a (trained) network with an example of two images and a batch that varies."""
    return ModelSpec(model, (example(2, 1, 8, 8, seed=seed),), dynamic={"x": {0: "batch"}})
