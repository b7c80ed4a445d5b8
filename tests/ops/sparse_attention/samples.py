"""Calls of the operator on seeded numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.ops.sparse_attention.oracle import Call


def sample(
    S: int, T: int | None = None, heads: int = 2, shared: int | None = None, D: int = 6, E: int = 4, batch: int = 1,
    dtype: torch.dtype = torch.float32, seed: int = 0, **options: Any,
) -> Call:  # fmt: skip
    """Return a call on normal numbers; T queries, as many as keys unless told; `shared` heads of keys, as many as of queries."""
    generator = torch.Generator().manual_seed(seed)

    def normal(count: int, rows: int, width: int) -> Tensor:
        return torch.randn(batch, count, rows, width, generator=generator, dtype=torch.float64).to(dtype)

    of_keys = heads if shared is None else shared
    query = normal(heads, S if T is None else T, D)
    return Call(query, normal(of_keys, S, D), normal(of_keys, S, E), **options)


def padding(S: int, *lengths: int) -> Tensor:
    """Return a mask (B, 1, 1, S) bool of the first keys of each sample."""
    return (torch.arange(S) < torch.tensor(lengths)[:, None])[:, None, None]


def added(S: int, heads: int = 1, batch: int = 1, seed: int = 1) -> Tensor:
    """Return a bias (B, H, 1, S) of normal numbers."""
    return torch.randn(batch, heads, 1, S, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
