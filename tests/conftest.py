"""Small modules and programs that many tests share. Seeds are fixed; no data from outside is read."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor, nn

from dsopt.frontend.export import export_module
from dsopt.ir import Program

settings.register_profile(
    "dsopt", deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("dsopt")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the other processes have the other cores


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


class ConvNet(nn.Module):
    """conv - bn - relu - depthwise - bn - relu6 - residual add - relu - pool - dropout - linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU6())
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(8, 5)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.body(x))
        return self.head(self.drop(x.mean((2, 3))))


class Counter(nn.Module):
    """Keeps a running sum: state that every call changes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.total.add_(x.sum(0))
        return self.total * 2


class Nested(nn.Module):
    """Positional, keyword, tuple and dict inputs; dict and tuple outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(
        self, x: Tensor, pair: tuple[Tensor, Tensor], *, opts: dict[str, Tensor], scale: int = 2
    ) -> dict[str, Any]:
        y = self.lin(x) + pair[0] * pair[1]
        return {"out": y * opts["gain"], "parts": (y * scale, x), "note": None}


@pytest.fixture
def conv_net() -> nn.Module:
    return ConvNet().eval()


@pytest.fixture
def conv_program(conv_net: nn.Module) -> Program:
    return export_module(conv_net, (torch.randn(2, 3, 8, 8),), {}, {"x": {0: "batch"}})


@pytest.fixture
def counter_program() -> Program:
    return export_module(Counter(), (torch.randn(2, 3),))


@pytest.fixture
def nested_program() -> Program:
    return export_module(Nested().eval(), *nested_example())


def nested_example() -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return args and kwargs of one call of `Nested`."""
    pair = (torch.randn(3, 4), torch.randn(3, 4))
    return (torch.randn(3, 4), pair), {"opts": {"gain": torch.randn(3, 1)}, "scale": 3}


@pytest.fixture
def capture_function() -> Callable[..., Program]:
    """Return capture(function, *tensors, dynamic={...}) -> Program of a plain function."""

    def capture(
        function: Callable[..., Any], *tensors: Tensor, dynamic: dict[str, dict[int, Any]] | None = None
    ) -> Program:
        return export_module(_Plain(function), tensors, {}, dynamic)

    return capture


class _Plain(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.forward = function  # type: ignore[method-assign]
