from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dsopt
from dsopt.errors import CaptureError


class Regions(nn.Module):
    """Runs a given function, which may use the layer and the buffer."""

    def __init__(self, function: Callable[[Regions, Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.linear = nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def without_gradient(model: Regions, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = model.linear(x)
    return model.linear(y)


def two_results(model: Regions, x: Tensor) -> Tensor:
    with torch.no_grad():
        y, z = model.linear(x), x.relu()
    return y - z


def nested(model: Regions, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = model.linear(x)
        with torch.enable_grad():
            y = y * 2
        y = y + 1
    return y.relu()


def without_autocast(model: Regions, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        y = model.linear(x)
    return y + 1


def counts(model: Regions, x: Tensor) -> Tensor:
    with torch.no_grad():
        model.count.add_(1)
        y = model.linear(x)
    return y * model.count


def all_of_it(model: Regions, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.linear(x)


@pytest.mark.parametrize("function", [without_gradient, two_results, nested, without_autocast, counts, all_of_it])
def test_regions_that_matter_to_training_only_are_dissolved(function: Callable[[Regions, Tensor], Any]) -> None:
    model, x = Regions(function), torch.randn(2, 4)
    program = dsopt.capture(model, (x,))
    assert all("wrap_with" not in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.run(x)[0], model(x), rtol=0, atol=0)


def test_an_autocast_that_changes_the_numbers_is_refused() -> None:
    def in_half(model: Regions, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model.linear(x)

    with pytest.raises(CaptureError, match="DS0121"):
        dsopt.capture(Regions(in_half), (torch.randn(2, 4),))
