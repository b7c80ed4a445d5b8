"""A BERT encoder of any depth: Devlin et al. 2018, post-norm, with learned positions; by default the published "mini" size."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsopt import ModelSpec
from models.seeded import example_ids, seeded

EPSILON = 1e-12
Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(q, k, v, mask) -> result; q, k, v: (B, H, S, D), mask: (B, 1, 1, S) bool, true where a key may be seen."""


def attend_fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attend through torch's own scaled dot-product attention."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def attend_by_matmul(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attend as the first published code did: scores, an additive mask, softmax, a product."""
    scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
    scores = scores + (1.0 - mask.to(q.dtype)) * torch.finfo(q.dtype).min
    return torch.matmul(scores.softmax(dim=-1), v)


def attend_by_einsum(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attend in Einstein's notation, masked by filling."""
    scores = torch.einsum("bhtd,bhsd->bhts", q, k) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~mask, float("-inf"))
    return torch.einsum("bhts,bhsd->bhtd", scores.softmax(dim=-1), v)


ATTENTION: dict[str, Attend] = {"sdpa": attend_fused, "matmul": attend_by_matmul, "einsum": attend_by_einsum}


class SelfAttention(nn.Module):
    """Mix (B, S, hidden) along S in `heads` heads."""

    def __init__(self, hidden: int, heads: int, attend: Attend) -> None:
        super().__init__()
        self.heads, self.attend = heads, attend
        self.query, self.key, self.value = (nn.Linear(hidden, hidden) for _ in range(3))
        self.output = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Attend to the keys that `mask`, (B, 1, 1, S) bool, lets through."""
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        return self.dropout(self.output(self.attend(q, k, v, mask).transpose(1, 2).flatten(2)))


class Layer(nn.Module):
    """One encoder layer on (B, S, hidden)."""

    def __init__(self, hidden: int, heads: int, attend: Attend) -> None:
        super().__init__()
        self.attention = SelfAttention(hidden, heads, attend)
        self.attention_norm = nn.LayerNorm(hidden, EPSILON)
        self.up, self.down = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)
        self.dropout = nn.Dropout(0.1)
        self.output_norm = nn.LayerNorm(hidden, EPSILON)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Attend, then apply the two-layer network, each with its residual and norm."""
        x = self.attention_norm(x + self.attention(x, mask))
        return self.output_norm(x + self.dropout(self.down(F.gelu(self.up(x)))))


class Bert(nn.Module):
    """Encode (B, S) int64 token ids; `mask` is (B, S) int64, 1 for tokens and 0 for padding.

    Returns {"hidden": (B, S, hidden), "pooled": (B, hidden)}. All tokens are of the first segment.
    """

    def __init__(
        self,
        layers: int,
        hidden: int,
        heads: int,
        *,
        vocabulary: int = 30522,
        positions: int = 512,
        attention: str = "sdpa",
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, hidden)
        self.positions = nn.Embedding(positions, hidden)
        self.segments = nn.Embedding(2, hidden)
        self.norm = nn.LayerNorm(hidden, EPSILON)
        self.dropout = nn.Dropout(0.1)
        self.layers = nn.ModuleList(Layer(hidden, heads, ATTENTION[attention]) for _ in range(layers))
        self.pooler = nn.Linear(hidden, hidden)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Encode token ids."""
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.tokens(ids) + self.positions(places) + self.segments.weight[0]
        x = self.dropout(self.norm(x))
        visible = mask.bool()[:, None, None, :]
        for layer in self.layers:
            x = layer(x, visible)
        return {"hidden": x, "pooled": torch.tanh(self.pooler(x[:, 0]))}


def bert(
    *,
    layers: int = 4,
    hidden: int = 256,
    heads: int = 4,
    vocabulary: int = 30522,
    sequence: int = 32,
    attention: str = "sdpa",
    seed: int = 0,
) -> ModelSpec:
    """Return an encoder with seeded weights and two sentences of `sequence` tokens, the second half as long and padded.

    attention: "sdpa", "matmul" or "einsum", three ways in which users write the same thing.
    """
    model = seeded(lambda: Bert(layers, hidden, heads, vocabulary=vocabulary, attention=attention), seed)
    mask = torch.ones(2, sequence, dtype=torch.int64)
    mask[1, sequence // 2 :] = 0
    varying = {0: "batch", 1: "sequence"}
    return ModelSpec(
        model,
        (example_ids(2, sequence, below=vocabulary, seed=seed),),
        {"mask": mask},
        {"ids": varying, "mask": varying},
    )
