"""Small networks and data that the tests of training share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dsopt.frontend.export import export_module
from dsopt.ir import Program
from models import digits

CLASSES = 10


class Net(nn.Module):
    """conv - bn - relu - pool - dropout - linear, with numbers of its own in batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6, eps=3e-2, momentum=0.3)
        self.drop = nn.Dropout(0.25)
        self.head = nn.Linear(96, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        return self.head(self.drop(x.flatten(1)))


class Pair(nn.Module):
    """Two inputs by name, and an output beside the first that a loss may leave out."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.aside = nn.Linear(4, 8), nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, a: Tensor, *, b: Tensor) -> dict[str, Tensor]:
        both = torch.relu(self.left(a) + self.right(b))
        return {"sum": both.sum(-1), "aside": self.aside(both)}


def net_program(seed: int = 0) -> Program:
    """Return the untrained network with a batch size that varies."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return export_module(Net().eval(), (torch.randn(2, 1, 8, 8),), {}, {"x": {0: "batch"}})


def pair_program() -> Program:
    """Return the network of two inputs."""
    torch.manual_seed(0)
    dynamic: Any = {"a": {0: "batch"}, "b": {0: "batch"}}
    return export_module(Pair().eval(), (torch.randn(2, 4),), {"b": torch.randn(2, 3)}, dynamic)


def digit_batches(count: int, size: int = 32) -> list[tuple[Tensor, Tensor]]:
    """Return the first training digits, in order."""
    data = digits.load_digits()
    return [
        (data.x_train[start : start + size], data.y_train[start : start + size])
        for start in range(0, count * size, size)
    ]


def random_loader(count: int = 6, size: int = 8, **options: Any) -> DataLoader[Any]:
    """Return a loader of seeded images, shuffled unless told otherwise."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(count * size, 1, 8, 8, generator=generator)
    labels = torch.randint(CLASSES, (count * size,), generator=generator)
    return DataLoader(TensorDataset(images, labels), **{"batch_size": size, "shuffle": True, **options})


def same_weights(one: Program, other: Program) -> bool:
    """Tell whether two programs are one, node by node and bit by bit."""
    return (
        one.text() == other.text()
        and sorted(one.weights) == sorted(other.weights)
        and all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())
    )


class StopError(Exception):
    """Raised by a test in the middle of a training."""


def stop_after(steps: int) -> Callable[[int, int, str], None]:
    """Return a progress function that stops a training after so many steps."""

    def progress(done: int, total: int, what: str) -> None:
        if done >= steps:
            raise StopError

    return progress
