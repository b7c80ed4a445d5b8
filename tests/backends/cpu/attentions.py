"""A table of sparse attentions, small enough that a budget really drops keys, with inputs for each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dsopt.ops.sparse_attention import sparse_attention


@dataclass(frozen=True)
class Attend:
    """One attention: heads H (of keys K), queries T, keys S (T if None), head sizes D and E, batch B; bias: "", "bool", "float"."""

    T: int
    S: int | None = None
    H: int = 3
    K: int | None = None
    D: int = 8
    E: int = 12
    B: int = 2
    bias: str = ""
    bias_shape: tuple[bool, bool, bool] = (True, True, True)  # whether the bias has the batch, the heads, the keys
    causal: str = "none"
    scale: float | None = None
    budget: tuple[float, ...] = (12.0,)
    unit: str = "keys"
    tile: int = 16
    window: int = 0
    dtype: torch.dtype = torch.float32
    seed: int = field(default=0)

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.causal, self.scale, list(self.budget), self.unit, self.tile, self.window

    def module(self) -> Callable[..., Tensor]:
        def call(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
            found: Tensor = torch.ops.dsopt.sparse_attention(q, k, v, bias, *self.arguments)
            return found

        return call

    def inputs(self, batch: int | None = None) -> tuple[Tensor, ...]:
        """Return query, key, value and bias; one head of the first example is masked as a whole."""
        make = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=make)

        B, S, K = self.B if batch is None else batch, self.S or self.T, self.K or self.H
        given = [normal(B, self.H, self.T, self.D) * 2, normal(B, K, S, self.D), normal(B, K, S, self.E)]
        if self.bias:
            has_batch, has_heads, has_keys = self.bias_shape
            noise = normal(B if has_batch else 1, self.H if has_heads else 1, 1, S if has_keys else 1)
            bias = noise > -0.5 if self.bias == "bool" else 2 * noise
            if B and has_keys:
                bias[0, 0] = False if self.bias == "bool" else -math.inf
            given.append(bias)
        return tuple(each if each.dtype == torch.bool else each.to(self.dtype) for each in given)

    def expected(self, inputs: tuple[Tensor, ...]) -> Tensor:
        q, k, v, *bias = inputs
        return sparse_attention(q, k, v, bias[0] if bias else None, *self.arguments)


ATTENTIONS: dict[str, Attend] = {
    "plain": Attend(96),
    "ragged": Attend(103, tile=7),
    "several levels of nodes": Attend(300),
    "no pick": Attend(300, budget=(0,)),
    "all keys": Attend(100, budget=(-1,)),
    "nearly all keys": Attend(100, budget=(98,)),
    "too short": Attend(15, budget=(2,)),
    "window": Attend(300, window=3),
    "scale": Attend(96, scale=0.9),
    "causal": Attend(300, causal="start"),
    "causal, ragged": Attend(203, causal="start", tile=13, window=2),
    "causal at the end": Attend(50, 203, causal="end"),
    "causal, more queries": Attend(203, 50, causal="end", budget=(4,)),
    "causal, each query alone": Attend(64, causal="start", tile=1, budget=(4,)),
    "one query": Attend(1, 300),
    "grouped heads": Attend(203, H=6, K=2, causal="start"),
    "one head of keys": Attend(203, H=4, K=1, window=1),
    "mask": Attend(203, bias="bool"),
    "mask, causal, grouped": Attend(203, H=4, K=2, bias="bool", causal="start"),
    "bias": Attend(203, bias="float", window=5),
    "bias, causal, grouped": Attend(203, H=4, K=2, bias="float", causal="end", window=4),
    "one bias for all heads": Attend(203, H=4, K=2, bias="float", bias_shape=(True, False, True)),
    "one mask for all": Attend(203, H=4, K=2, bias="bool", bias_shape=(False, False, True), causal="start"),
    "a bias without keys": Attend(100, bias="float", bias_shape=(False, True, False)),
    "budgets by head": Attend(300, H=4, budget=(5, 20, -1, 0)),
    "budgets by head, all else": Attend(300, H=4, K=2, budget=(20, -1, 0, 20), bias="float", causal="start", window=2),
    "a share": Attend(300, budget=(0.3,), unit="share"),
    "by logarithm": Attend(300, budget=(3,), unit="log2"),
    "float64": Attend(203, dtype=torch.float64, causal="start"),
    "float16": Attend(203, dtype=torch.float16),
    "1024": Attend(1024, H=1, B=1, budget=(12,), unit="log2", tile=64),
    "from a coarse level": Attend(32, 8200, H=1, B=1, budget=(20,), causal="end"),
}
