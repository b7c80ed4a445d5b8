"""Small modules whose exports use one feature of the archive format each, with an example call and dynamic dims."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim


class Case(NamedTuple):
    """A module, a call of it, and the dynamic shapes it is exported with."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = {}
    dynamic: Any = None


Pair = namedtuple("Pair", ["left", "right"])
torch.utils._pytree._register_namedtuple(Pair, serialized_type_name="tests.frontend.programs.Pair")


class Calling(nn.Module):
    """A module whose forward is a given function, with named tensors as buffers."""

    def __init__(self, function: Callable[..., Any], **buffers: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


class Nested(nn.Module):
    """Takes positional, nested and keyword inputs, and returns a dict that holds a tuple and a list."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.offset = torch.arange(3.0)  # neither parameter nor buffer: torch lifts it to a constant

    def forward(self, x: Tensor, options: dict[str, Tensor], *, scale: Tensor, shift: None = None) -> dict[str, Any]:
        y = self.linear(x) * options["gain"] + self.offset
        return {"out": y * scale, "more": (y.sum(0), [torch.cat([y, y]), y.reshape(-1)])}


class Counter(nn.Module):
    """Changes a buffer, which makes it a state."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("scratch", torch.ones(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return x * self.count + self.scratch


class Tied(nn.Module):
    """Has two names for one weight, and views of one storage."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.embedding.weight
        table = torch.arange(24.0).reshape(4, 6)
        self.register_buffer("first", table[:, :2])
        self.register_buffer("second", table.t()[3:])

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embedding(ids)) + self.first.sum() * self.second.sum()


class Recurrent(nn.Module):
    """LSTM and GRU in sequence, with a varying batch (torch fixes their time when it exports)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 6, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(12, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(self.lstm(x)[0])[0][:, -1]


class Convolutions(nn.Module):
    """Convolution with a text argument, batch norm, pooling and a branch that training mode would take."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding="same", bias=False)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.norm(self.conv(x)), approximate="tanh")
        return F.dropout(F.adaptive_avg_pool2d(y, 1).flatten(1), training=self.training)


class Branching(nn.Module):
    """Chooses a branch by its data, in the form that export keeps."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda y: y * 2.0, lambda y: y - 1.0, (x,))


class NoGrad(nn.Module):
    """Runs a part without gradients, which export keeps as a higher-order operator."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.linear(x)
        return self.linear(y)


def _positive(_: nn.Module, x: Tensor) -> Tensor:
    n = x.sum().item()
    torch._check(n >= 0)
    torch._check(n <= 100)
    return torch.zeros(n + 1)


def _odd_arguments(_: nn.Module, x: Tensor) -> Tensor:
    y = torch.where(x > 0, x, float("-inf")).clamp(min=-1e30)
    y = y.to(torch.float64).pow(1.5).to(torch.float32, memory_format=torch.contiguous_format)
    return y[None, :, ::2] + torch.zeros(1, device=x.device, dtype=torch.float32)


def _containers(_: nn.Module, x: Tensor) -> Any:
    return OrderedDict(b=x + 1, a=defaultdict(list, {"k": x * 2})), Pair(x - 1, [x, None, 3])


CASES: dict[str, Case] = {
    "nested": Case(
        Nested(),
        (torch.randn(6, 4), {"gain": torch.randn(3)}),
        {"scale": torch.tensor(2.0)},
        {"x": {0: Dim("batch", min=2, max=64)}, "options": {"gain": None}, "scale": None},
    ),
    "state": Case(Counter(), (torch.randn(2),)),
    "tied": Case(Tied(), (torch.tensor([[1, 2, 10], [3, 4, 5]]),), {}, {"ids": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}}),
    "recurrent": Case(Recurrent().eval(), (torch.randn(2, 7, 5),), {}, {"x": {0: Dim("batch", min=2, max=99)}}),
    "convolutions": Case(Convolutions().eval(), (torch.randn(2, 3, 8, 8),), {}, {"x": {0: Dim("batch")}}),
    "attention": Case(nn.MultiheadAttention(8, 2, batch_first=True).eval(), (torch.randn(2, 5, 8),) * 3),
    "branching": Case(Branching(), (torch.randn(4),)),
    "no grad": Case(NoGrad(), (torch.randn(2, 4),)),
    "data-dependent size": Case(Calling(_positive), (torch.tensor([1, 2]),)),
    "odd arguments": Case(Calling(_odd_arguments), (torch.randn(4, 6),)),
    "containers": Case(Calling(_containers), (torch.randn(3),)),
    "derived size": Case(
        Calling(lambda _, x: x.reshape(-1, 2, 3).sum(0) * x.shape[0]),
        (torch.randn(6, 4, 3),),
        {},
        {"x": {0: 2 * Dim("half", min=2, max=20)}},
    ),
    "size arithmetic": Case(
        Calling(lambda _, x: F.pad(x, (0, (4 - x.shape[1] % 4) % 4))[:, : max(x.shape[1] // 2, 1)] / x.shape[1]),
        (torch.randn(3, 10),),
        {},
        {"x": {1: Dim.DYNAMIC}},
    ),
    "narrow types": Case(
        Calling(
            lambda self, x: x * self.mask + self.short.float() + self.brain.float().sum() + self.empty.sum(),
            mask=torch.tensor([True, False]),
            short=torch.ones(2, dtype=torch.float16),
            brain=torch.ones(3, dtype=torch.bfloat16),
            empty=torch.zeros(0, 3),
        ),
        (torch.randn(2),),
    ),
}
