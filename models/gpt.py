"""A small causal GPT over characters: Radford et al. 2019, pre-norm, with the output tied to the embedding.

`gpt` reads a whole sequence; `gpt_decode` is the same network taking one token a step, with its keys and values kept as
state, so that a session or a chip writes text without reading the past again.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsopt import DenseCache, ModelSpec, SparseCache
from models.seeded import example_ids, seeded

VOCABULARY, CONTEXT, WIDTH, HEADS, LAYERS = 96, 64, 64, 4, 2


class Attention(nn.Module):
    """Causal self-attention in `heads` heads on (B, T, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each (B, H, T, D)."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        return q, k, v

    def merge(self, y: Tensor) -> Tensor:
        """Bring the heads (B, H, T, D) together again: (B, T, width)."""
        return self.output(y.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        """Let each token see itself and those before it."""
        q, k, v = self.project(x)
        return self.merge(F.scaled_dot_product_attention(q, k, v, is_causal=True))


class Layer(nn.Module):
    """One decoder layer on (B, T, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Attend, then apply the two-layer network, each with its residual."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Gpt(nn.Module):
    """Map (B, T) int64 tokens, T at most `context`, to (B, T, vocabulary) logits of the next token."""

    def __init__(
        self,
        vocabulary: int = VOCABULARY,
        context: int = CONTEXT,
        width: int = WIDTH,
        heads: int = HEADS,
        layers: int = LAYERS,
    ) -> None:
        super().__init__()
        self.context = context
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        # Radford et al. 2019 draw embeddings this small: with unit ones, the tied output would only repeat its input.
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Predict the token after each token."""
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for layer in self.layers:
            x = layer(x)
        return F.linear(self.norm(x), self.tokens.weight)


class GptDecoder(nn.Module):
    """One step of `gpt`: (1,) int64 token and its (1,) int64 position, counted from 0, to (1, vocabulary) logits.

    Steps go 0, 1, 2, ... in order; position 0 starts a new text, because later places of the caches are never looked at.
    budget: keys that each token looks for, for each doubling of the context, instead of looking at all of them.
    """

    def __init__(self, gpt: Gpt, budget: float | None = None) -> None:
        super().__init__()
        self.gpt = gpt
        width, heads = gpt.tokens.embedding_dim, gpt.layers[0].attention.heads
        make = DenseCache if budget is None else partial(SparseCache, budget=budget)
        self.caches = nn.ModuleList(make(heads, gpt.context, width // heads) for _ in gpt.layers)

    def forward(self, token: Tensor, position: Tensor) -> Tensor:
        """Predict the token after `token`."""
        x = (self.gpt.tokens(token) + self.gpt.positions(position))[:, None]
        for layer, cache in zip(self.gpt.layers, self.caches, strict=True):
            q, k, v = layer.attention.project(layer.attention_norm(x))
            x = x + layer.attention.merge(cache(q, k, v, position))
            x = x + layer.mlp(layer.mlp_norm(x))
        return F.linear(self.gpt.norm(x)[:, 0], self.gpt.tokens.weight)


def gpt(*, layers: int = LAYERS, width: int = WIDTH, heads: int = HEADS, seed: int = 0) -> ModelSpec:
    """Return the network that reads a whole sequence, with seeded weights and two texts of 16 characters."""
    model = seeded(lambda: Gpt(layers=layers, width=width, heads=heads), seed)
    tokens = example_ids(2, 16, below=VOCABULARY, seed=seed)
    return ModelSpec(model, (tokens,), dynamic={"tokens": {0: "batch", 1: "sequence"}})


def gpt_decode(
    *,
    layers: int = LAYERS,
    width: int = WIDTH,
    heads: int = HEADS,
    context: int = CONTEXT,
    budget: float | None = None,
    seed: int = 0,
) -> ModelSpec:
    """Return the same network, with the same weights, as one step with its cache as state. budget: for a sparse cache."""
    model = seeded(lambda: GptDecoder(Gpt(context=context, layers=layers, width=width, heads=heads), budget), seed)
    return ModelSpec(model, (example_ids(1, below=VOCABULARY, seed=seed), torch.zeros(1, dtype=torch.int64)))
