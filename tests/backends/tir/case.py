"""What the tables of operator cases are made of: functions and modules over the inputs of a family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Family:
    inputs: tuple[Tensor, ...]
    cases: dict[str, Function]
    tolerance: float = 1e-5
    skip: tuple[str, ...] = field(default=())


class Cases(nn.Module):
    """All cases of a family in one program, so that one export and one compiler run test them all."""

    def __init__(self, cases: dict[str, Function]) -> None:
        super().__init__()
        self.functions = list(cases.values())
        self.kept = nn.ModuleList([f for f in self.functions if isinstance(f, nn.Module)])

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(function(*inputs) for function in self.functions)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def positive(*shape: int, seed: int = 9) -> Tensor:
    return normal(*shape, seed=seed).abs() + 0.1


class Weighted(nn.Module):
    """A functional with weights of given shapes."""

    def __init__(self, function: Function, *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        for number, shape in enumerate(shapes):
            self.register_buffer(f"w{number}", normal(*shape, seed=100 + number))
        self.count = len(shapes)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs, *(getattr(self, f"w{n}") for n in range(self.count)))


class On(nn.Module):
    """A module applied to one of the inputs."""

    def __init__(self, module: nn.Module, index: int = 0) -> None:
        super().__init__()
        self.module, self.index = module, index
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            if not value.is_floating_point():
                continue
            seed = sum(map(ord, name)) % 1000
            with torch.no_grad():
                value.copy_(
                    positive(*value.shape, seed=seed) if "var" in name else normal(*value.shape, seed=seed, scale=0.5)
                )

    def forward(self, *inputs: Tensor) -> Tensor:
        result = self.module(inputs[self.index])
        return result[0] if isinstance(result, tuple) else result
