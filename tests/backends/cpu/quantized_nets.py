"""Small modules for quantisation, one operator family each: name -> (module, makers of its inputs)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.backends.cpu.cases import module

Shapes = tuple[tuple[int, ...], ...]


class Call(nn.Module):
    """A function of inputs that pass a linear layer of their own first, so that they are on grids."""

    def __init__(self, function: Callable[..., Tensor], *widths: int) -> None:
        super().__init__()
        self.function = function
        self.layers = nn.ModuleList(nn.Linear(width, width) for width in widths)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*(layer(each) for layer, each in zip(self.layers, inputs, strict=True)))


class Call1(Call):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Call2(Call):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x, y)


class Call3(Call):
    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return super().forward(x, y, z)


class Stored(nn.Module):
    """A product with a stored matrix on a side."""

    def __init__(self, is_left: bool) -> None:
        super().__init__()
        self.is_left, self.matrix = is_left, nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(self.matrix, x) if self.is_left else torch.matmul(x, self.matrix)


class Words(nn.Module):
    """An embedding, its mean and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 12), nn.Linear(12, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids).mean(1))


class Recurrent(nn.Module):
    """A recurrent layer whose sequence is the output."""

    def __init__(self, kind: Callable[..., nn.Module], **options: Any) -> None:
        super().__init__()
        self.layer = kind(6, 5, **options)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x)[0]
        return result


def _conv(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


IMAGE = ((2, 8, 9, 7),)
WEIGHTED: dict[str, tuple[Callable[[], nn.Module], Shapes]] = {
    "conv1d": (lambda: _conv(nn.Conv1d(8, 6, 3, padding=1), nn.ReLU(), nn.Conv1d(6, 4, 5, stride=2)), ((2, 8, 17),)),
    "conv2d": (lambda: _conv(nn.Conv2d(8, 6, 3, padding=1), nn.ReLU6(), nn.Conv2d(6, 4, 2, dilation=2)), IMAGE),
    "conv2d with batch norm": (lambda: _conv(nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU()), IMAGE),
    "depthwise": (lambda: _conv(nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 3, 1)), IMAGE),
    "grouped": (lambda: _conv(nn.Conv2d(8, 12, 3, groups=4), nn.Hardtanh(-0.5, 0.5)), IMAGE),
    "transposed": (lambda: _conv(nn.ConvTranspose2d(8, 6, 3, 2, 1, 1), nn.ReLU(), nn.Conv2d(6, 2, 1)), IMAGE),
    "transposed in groups": (lambda: nn.ConvTranspose1d(8, 4, 4, 2, groups=2), ((2, 8, 9),)),
    "linear": (lambda: _conv(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 5, bias=False)), ((3, 24),)),
    "linear of sequences": (lambda: _conv(nn.Linear(24, 16), nn.Linear(16, 5)), ((2, 7, 24),)),
    "embedding": (Words, ((3, 6),)),
    "lstm": (lambda: Recurrent(nn.LSTM, batch_first=True), ((2, 9, 6),)),
    "lstm both ways": (lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True), ((9, 2, 6),)),
    "gru": (lambda: Recurrent(nn.GRU, batch_first=True), ((2, 9, 6),)),
    "gru both ways": (lambda: Recurrent(nn.GRU, bidirectional=True, bias=False), ((9, 2, 6),)),
}

UNWEIGHTED: dict[str, tuple[Callable[[], nn.Module], Shapes]] = {
    "matmul": (lambda: Call2(lambda x, y: x @ y.mT, 6, 6), ((2, 3, 6), (2, 5, 6))),
    "matmul with a stored right side": (lambda: Stored(False), ((2, 5, 6),)),
    "matmul with a stored left side": (lambda: Stored(True), ((2, 6, 5),)),
    "attention": (
        lambda: Call3(F.scaled_dot_product_attention, 8, 8, 8), ((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8)),
    ),
    "causal attention": (
        lambda: Call3(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), 8, 8, 8), ((1, 2, 6, 8),) * 3,
    ),
    "add": (lambda: Call2(lambda x, y: F.relu(x + y), 6, 6), ((4, 6), (4, 6))),
    "sub and mul": (lambda: Call2(lambda x, y: (x - y) * y, 6, 6), ((4, 6), (1, 6))),
    "cat": (lambda: Call2(lambda x, y: torch.cat([x, 3 * y, x], -1), 6, 4), ((4, 6), (4, 4))),
    "max pool": (lambda: Call1(lambda x: F.max_pool2d(x, 3, 2, 1), 7), IMAGE),
    "avg pool": (lambda: Call1(lambda x: F.avg_pool2d(x, 3, 2), 7), IMAGE),
    "global pool": (lambda: Call1(lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1), 7), IMAGE),
    "softmax": (lambda: Call1(lambda x: F.softmax(x, -1), 9), ((4, 9),)),
    "layer norm": (lambda: _conv(nn.Linear(12, 12), nn.LayerNorm(12)), ((4, 12),)),
    "relayout": (lambda: Call1(lambda x: x.permute(0, 2, 3, 1).reshape(2, -1)[:, 5:90] * 2.5, 7), IMAGE),
    **{
        each.__name__: ((lambda each=each: Call1(each, 12)), ((4, 12),))
        for each in (F.relu, F.relu6, F.hardswish, F.hardsigmoid, F.gelu, F.silu, F.leaky_relu, F.elu, torch.sigmoid, torch.tanh)
    },
}  # fmt: skip


def make(name: str) -> tuple[nn.Module, list[tuple[Tensor, ...]]]:
    """Return a seeded module and nine samples, of which the last is not for calibration."""
    factory, shapes = (WEIGHTED | UNWEIGHTED)[name]
    net = module(factory)
    torch.manual_seed(11)
    if name == "embedding":
        return net, [(torch.randint(0, 20, shapes[0]),) for _ in range(9)]
    return net, [tuple(torch.randn(shape) for shape in shapes) for _ in range(9)]
