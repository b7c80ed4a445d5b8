"""Remaining life of turbofan engines: an LSTM over the last 30 cycles of NASA's C-MAPSS FD001 (Saxena et al. 2008).

`load_fd001` reads train_FD001.txt, test_FD001.txt and RUL_FD001.txt, as NASA's Prognostics Center of Excellence publishes them
("Turbofan Engine Degradation Simulation"), from a folder that the user names. Lines: engine, cycle, 3 settings, 21 sensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsopt import ModelSpec
from models.seeded import example, seeded

STEPS = 30
SENSORS = (2, 3, 4, 7, 8, 9, 11, 12, 13, 14, 15, 17, 20, 21)
"""The ones that are not constant at FD001's one operating condition, counted from 1."""
LONGEST = 125.0
"""Remaining cycles are capped here: a new engine shows nothing (Heimes 2008)."""
COLUMNS = 26


class Fd001(NamedTuple):
    """Windows (N, STEPS, sensors) float32, standardised, and remaining cycles (N,) float32: all of the training engines, the last of each
    held-out one."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor


def load_fd001(folder: Path) -> Fd001:
    """Read and cut the windows. Raises OSError, or ValueError if a file does not hold what it should."""
    train_rows, test_rows = _read(folder / "train_FD001.txt"), _read(folder / "test_FD001.txt")
    life = np.loadtxt(folder / "RUL_FD001.txt", dtype=np.float32, ndmin=1)
    picked = [4 + sensor for sensor in SENSORS]
    mean, deviation = train_rows[:, picked].mean(0), train_rows[:, picked].std(0) + 1e-6
    x_train, y_train = [], []
    for rows in _engines(train_rows):
        windows = _windows((rows[:, picked] - mean) / deviation)
        x_train.append(windows)
        y_train.append(np.arange(len(windows))[::-1])
    engines = _engines(test_rows)
    if len(life) != len(engines):
        raise ValueError(f"RUL_FD001.txt holds {len(life)} lives and test_FD001.txt {len(engines)} engines")
    x_test = [_windows((rows[:, picked] - mean) / deviation)[-1:] for rows in engines]
    parts = (np.concatenate(x_train), np.concatenate(y_train), np.concatenate(x_test), life)
    x_train_all, y_train_all, x_test_all, y_test = (torch.from_numpy(np.asarray(part, np.float32)) for part in parts)
    return Fd001(x_train_all, y_train_all.clamp(max=LONGEST), x_test_all, y_test.clamp(max=LONGEST))


def _read(path: Path) -> np.ndarray:
    rows = np.loadtxt(path, dtype=np.float64, ndmin=2)
    if rows.shape[1] != COLUMNS:
        raise ValueError(f"{path} has {rows.shape[1]} columns and must have {COLUMNS}")
    return rows


def _engines(rows: np.ndarray) -> list[np.ndarray]:
    """Divide rows by engine."""
    return np.split(rows, np.flatnonzero(np.diff(rows[:, 0])) + 1)


def _windows(sensors: np.ndarray) -> np.ndarray:
    """Return every window of STEPS cycles, (N, STEPS, sensors); a shorter life is continued backwards by its first cycle."""
    if len(sensors) < STEPS:
        sensors = np.concatenate([np.repeat(sensors[:1], STEPS - len(sensors), 0), sensors])
    return np.lib.stride_tricks.sliding_window_view(sensors, STEPS, 0).transpose(0, 2, 1)


class TurbofanNet(nn.Module):
    """Map (B, STEPS, sensors) to (B, 1), the remaining cycles."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.lstm = nn.LSTM(len(SENSORS), hidden, batch_first=True)
        self.dropout = nn.Dropout(0.2)
        self.hidden = nn.Linear(hidden, 16)
        self.head = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Estimate remaining cycles."""
        y, _ = self.lstm(x)
        return LONGEST * self.head(F.relu(self.hidden(self.dropout(y[:, -1]))))


def train(data: Fd001, *, epochs: int = 8, seed: int = 0) -> TurbofanNet:
    """Train a `TurbofanNet`: Adam, batches of 128, one cosine of learning rates. About 7 s of CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TurbofanNet().train()
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        for _ in range(epochs):
            for rows in torch.randperm(len(data.y_train)).split(128):
                optimizer.zero_grad()
                loss(model(data.x_train[rows]), data.y_train[rows]).backward()
                optimizer.step()
            schedule.step()
    return model.eval()


def loss(output: Tensor, life: Tensor) -> Tensor:
    """Return the mean squared error, in units of the longest life so that gradients are near 1."""
    return F.mse_loss(output[:, 0] / LONGEST, life / LONGEST)


def fd001(*, seed: int = 0) -> ModelSpec:
    """Return the network with seeded, untrained weights and two examples."""
    return spec(seeded(TurbofanNet, seed), seed)


def spec(model: TurbofanNet, seed: int = 0) -> ModelSpec:
    """Return a (trained) network with an example of two windows and a batch that varies."""
    return ModelSpec(model, (example(2, STEPS, len(SENSORS), seed=seed),), dynamic={"x": {0: "batch"}})
