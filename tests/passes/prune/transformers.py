"""Small attention and recurrent networks, each with one way in which heads and hidden channels hang together."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, TOKENS = 24, 6


class GroupedQueries(nn.Module):
    """Queries in groups share keys and values (Ainslie et al. 2023), by the operator's flag, by copies, or by expanded views."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.heads, self.shared, self.size = kind, 6, 2, 8
        self.norm = nn.RMSNorm(WIDTH)
        self.q, self.kv = nn.Linear(WIDTH, 6 * 8), nn.Linear(WIDTH, 2 * 2 * 8)
        self.out, self.fc = nn.Linear(6 * 8, WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        B, T, _ = x.shape
        y = self.norm(x)
        q = self.q(y).view(B, T, self.heads, self.size).transpose(1, 2)
        k, v = self.kv(y).view(B, T, 2, self.shared, self.size).permute(2, 0, 3, 1, 4).unbind(0)
        count = self.heads // self.shared
        if self.kind == "copies":
            k, v = k.repeat_interleave(count, dim=1), v.repeat_interleave(count, dim=1)
        if self.kind == "views":
            k, v = (
                each[:, :, None].expand(B, self.shared, count, T, self.size).reshape(B, self.heads, T, self.size)
                for each in (k, v)
            )
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.kind == "flag")
        return self.fc(x + self.out(y.transpose(1, 2).reshape(B, T, -1)))


class Rotary(nn.Module):
    """Rotary positions (Su et al. 2021) in halves: channels of a head go in pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.fc = nn.Linear(WIDTH, 3 * 32), nn.Linear(32, WIDTH), nn.Linear(WIDTH, 5)
        self.register_buffer("speeds", torch.rand(4))

    def rotate(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[2], dtype=x.dtype)[:, None] * self.speeds[None]
        cos, sin = (torch.cat([f(angles), f(angles)], -1) for f in (torch.cos, torch.sin))
        a, b = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-b, a], -1) * sin

    def forward(self, x: Tensor) -> Tensor:
        B, T, _ = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, 4, 8).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v)
        return self.fc(x + self.out(y.transpose(1, 2).reshape(B, T, -1)))


class Windows(nn.Module):
    """Swin (Liu et al. 2021): windows rolled by half, a bias for each pair of places and head, written with matmul and softmax."""

    def __init__(self, side: int = 8, window: int = 4, heads: int = 3) -> None:
        super().__init__()
        self.window, self.heads, self.side = window, heads, side
        self.embed = nn.Conv2d(3, WIDTH, 1)
        self.norm, self.qkv, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        places = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        apart = (places[:, :, None] - places[:, None]) + window - 1
        self.register_buffer("index", (apart[0] * (2 * window - 1) + apart[1]).view(-1))
        self.merge_norm, self.merge, self.fc = (
            nn.LayerNorm(4 * WIDTH),
            nn.Linear(4 * WIDTH, 2 * WIDTH),
            nn.Linear(2 * WIDTH, 5),
        )

    def attend(self, x: Tensor) -> Tensor:
        N, T, C = x.shape
        q, k, v = self.qkv(x).reshape(N, T, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        scores = (q * (C // self.heads) ** -0.5) @ k.transpose(-2, -1)
        bias = self.table[self.index].view(T, T, -1).permute(2, 0, 1)
        scores = (scores + bias[None]).softmax(-1)
        return self.out((scores @ v).transpose(1, 2).reshape(N, T, C))

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image).permute(0, 2, 3, 1)
        B, H, W, C = x.shape
        w, half = self.window, self.window // 2
        y = torch.roll(self.norm(x), (-half, -half), (1, 2))
        y = y.view(B, H // w, w, W // w, w, C).permute(0, 1, 3, 2, 4, 5).reshape(-1, w * w, C)
        y = self.attend(y).view(B, H // w, W // w, w, w, C).permute(0, 1, 3, 2, 4, 5).reshape(B, H, W, C)
        x = x + torch.roll(y, (half, half), (1, 2))
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.fc(self.merge(self.merge_norm(x)).mean((1, 2)))


class Vision(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2020) of torch's own layers, with a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.token, self.places = nn.Parameter(torch.zeros(1, 1, WIDTH)), nn.Parameter(torch.zeros(1, 5, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 40, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        return self.head(self.encoder(x)[:, 0])


class Mixer(nn.Module):
    """MLP-Mixer (Tolstikhin et al. 2021): linear layers over places and over channels in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.places = nn.Sequential(nn.Linear(TOKENS, 16), nn.GELU(), nn.Linear(16, TOKENS))
        self.channels = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.places(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return self.head((x + self.channels(x)).mean(1))


class Recurrent(nn.Module):
    """A recurrent network between two linear layers; its last states are read, too."""

    def __init__(self, kind: type[nn.RNNBase], **options: bool | int) -> None:
        super().__init__()
        self.inputs = nn.Linear(8, 12)
        self.rnn = kind(12, 16, batch_first=True, **options)
        size = (options.get("proj_size") or 16) * (2 if options.get("bidirectional") else 1)
        self.head = nn.Linear(size, 5)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(torch.relu(self.inputs(x)))
        return self.head(y[:, -1])


class Cells(nn.Module):
    """A GRU cell and an LSTM cell, stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.lstm, self.head = nn.GRUCell(8, 12), nn.LSTMCell(12, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        h, c, a = x.new_zeros(x.shape[0], 16), x.new_zeros(x.shape[0], 16), x.new_zeros(x.shape[0], 12)
        for step in range(3):
            a = self.gru(x[:, step], a)
            h, c = self.lstm(a, (h, c))
        return self.head(h)


class Causal(nn.Module):
    """Causal convolutions over time with normalised weights (Bai et al. 2018), and attention that only looks back."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.utils.parametrizations.weight_norm(nn.Conv1d(inputs, 16, 3)) for inputs in (8, 16))
        self.qk, self.head = nn.Linear(16, 24), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(F.pad(x.transpose(1, 2), (2, 0))))
        y = (y + F.relu(self.b(F.pad(y, (2, 0))))).transpose(1, 2)
        q, k = self.qk(y).chunk(2, -1)
        back = torch.ones(y.shape[1], y.shape[1], dtype=torch.bool).tril()
        return self.head((q @ k.mT).masked_fill(~back, float("-inf")).softmax(-1) @ y)


class Gated(nn.Module):
    """SwiGLU (Shazeer 2020) from one fused projection, and a linear layer of weights normalised by their length."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 2 * 20, bias=False), nn.Linear(20, WIDTH)
        self.direction, self.length, self.head = (
            nn.Parameter(torch.ones(16, WIDTH)),
            nn.Parameter(torch.ones(16, 1)),
            nn.Linear(16, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.up(x).chunk(2, -1)
        y = self.down(F.silu(a) * b)
        return self.head(F.linear(y, self.length * F.normalize(self.direction, dim=1)))


TOKEN_NETS: dict[str, Callable[[], nn.Module]] = {
    "gqa_flag": lambda: GroupedQueries("flag"),
    "gqa_copies": lambda: GroupedQueries("copies"),
    "gqa_views": lambda: GroupedQueries("views"),
    "rotary": Rotary,
}
"""Networks on (B, TOKENS, WIDTH)."""

IMAGE_NETS: dict[str, Callable[[], nn.Module]] = {"windows": Windows, "vision": Vision}
"""Networks on (B, 3, 8, 8)."""

STEP_NETS: dict[str, Callable[[], nn.Module]] = {
    "mixer": Mixer,
    "gated": Gated,
    "causal": Causal,
    "cells": Cells,
    "lstm": lambda: Recurrent(nn.LSTM, num_layers=2),
    "lstm_both_ways": lambda: Recurrent(nn.LSTM, bidirectional=True),
    "lstm_projected": lambda: Recurrent(nn.LSTM, proj_size=10),
    "gru": lambda: Recurrent(nn.GRU, num_layers=2, bidirectional=True),
    "rnn": lambda: Recurrent(nn.RNN),
}
"""Networks on (B, TOKENS, 8)."""
