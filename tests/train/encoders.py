"""A small transformer encoder of any depth and width, with what the tests of distillation look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsopt.frontend.export import export_module
from dsopt.ir import Program

CLASSES = 4


class Layer(nn.Module):
    """One pre-norm or post-norm layer on (B, S, width)."""

    def __init__(self, width: int, heads: int, dropout: float, is_post_norm: bool) -> None:
        super().__init__()
        self.heads, self.is_post_norm = heads, is_post_norm
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)

    def maps(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the map of attention by the book, and the values."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(y).chunk(3, -1))
        return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1), v

    def attend(self, y: Tensor) -> Tensor:
        """Attend through torch's fused operator."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(y).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def mix(self, y: Tensor) -> Tensor:
        """Apply the network of two layers."""
        return self.down(F.gelu(self.up(y)))

    def forward(self, x: Tensor) -> Tensor:
        if self.is_post_norm:
            x = self.norm1(x + self.dropout(self.attend(x)))
            return self.norm2(x + self.dropout(self.mix(x)))
        x = x + self.dropout(self.attend(self.norm1(x)))
        return x + self.dropout(self.mix(self.norm2(x)))


class Encoder(nn.Module):
    """Classify (B, S, 3)."""

    def __init__(
        self, layers: int = 4, width: int = 8, heads: int = 2, dropout: float = 0.0, is_post_norm: bool = False
    ) -> None:
        super().__init__()
        self.stem = nn.Linear(3, width)
        self.layers = nn.ModuleList(Layer(width, heads, dropout, is_post_norm) for _ in range(layers))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))

    def hidden(self, x: Tensor) -> list[Tensor]:
        """Return what each layer gives."""
        x, found = self.stem(x), []
        for layer in self.layers:
            x = layer(x)
            found.append(x)
        return found


def seeded_encoder(seed: int, make: Callable[..., Any] = Encoder, **options: Any) -> Any:
    """Return an encoder in float64 with seeded weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(**options).double().eval()


def captured(model: nn.Module, dtype: torch.dtype = torch.float64) -> Program:
    """Return the program of an encoder, with a batch that varies."""
    return export_module(model, (torch.randn(2, 5, 3, dtype=dtype),), {}, {"x": {0: "batch"}})


def encoder_batches(count: int = 4, size: int = 6, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    """Return seeded batches of inputs and classes."""
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.randn(size, 5, 3, generator=generator, dtype=dtype), torch.randint(0, CLASSES, (size,), generator=generator))
        for _ in range(count)
    ]  # fmt: skip
