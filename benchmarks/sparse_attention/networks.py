"""Whole networks: the cpu artifact with sparse attention beside the same network's dense artifact, one thread, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dsopt
from benchmarks.harness import Row, interleave, paired_ratio, progress
from benchmarks.sparse_attention.budget import keys_of, share_of
from dsopt import Program
from dsopt.runtime import Session
from models.bert import Layer

TILE = 64
WORDS = 1 << 15
"""So many that no text has one twice: keys that are equal are picked by how their scores are rounded."""
LEAST_ROUNDS = 3
"""A dense call of the longest network takes minutes."""


def network_row(name: str, net: nn.Module, ids: Tensor, seconds: float) -> Row:
    """Compile a network of (1, S) ids twice, with as many keys a tile as the one schedule says, and time both."""
    program = dsopt.capture(net.eval(), (ids,))
    progress(f"networks: compiling {name}, {ids.shape[1]} ids")
    dense = dsopt.compile(program, "cpu", tolerance=1e-3)
    length = ids.shape[1]
    keys = keys_of(length, TILE, 64, 64)
    passes = f"...,sparse-attention{{keys={keys},max_error=none,at_least=0}}"
    sparse = dsopt.compile(program, "cpu", passes, tolerance=1e-2)
    return {"measure": "network", "network": name, "n": length, "threads": 1, "share": share_of(length, TILE, 64, 64),
            **_timed(program, ids, dense, sparse, seconds)}  # fmt: skip


def _timed(program: Program, ids: torch.Tensor, dense: Any, sparse: Any, seconds: float) -> Row:
    values = {program.signature.inputs[0].name: ids.numpy()}
    with Session(dense, threads=1) as one, Session(sparse, threads=1) as other:
        begin = time.perf_counter()
        first, second = (next(iter(each.run_flat(values).values())) for each in (one, other))
        is_long = time.perf_counter() - begin > seconds
        calls = {"dense": lambda: one.run_flat(values), "sparse": lambda: other.run_flat(values)}
        times = once_each(calls) if is_long else interleave(calls, budget_seconds=seconds, least_rounds=LEAST_ROUNDS)
    return {
        "seconds": float(np.median(times["sparse"])),
        "dense_seconds": float(np.median(times["dense"])),
        "ratio": paired_ratio([times["dense"]], [times["sparse"]]).median,
        "relative_l2": float(np.linalg.norm(second - first) / np.linalg.norm(first)),
        "native": any(name.startswith("kernels/") for name in sparse.files),
    }


def once_each(calls: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Return the seconds of each call in `LEAST_ROUNDS` rounds; calls of many seconds need no others before them."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(LEAST_ROUNDS):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            found[name].append(time.perf_counter() - begin)
    return found


class Encoder(nn.Module):
    """An untrained encoder of BERT's layers: (1, S) ids to (1, S, width)."""

    def __init__(self, layers: int = 12, width: int = 768, heads: int = 12) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(WORDS, width)
        self.layers = nn.ModuleList(Layer(width, heads, _attend) for _ in range(layers))

    def forward(self, ids: Tensor) -> Tensor:
        """Encode texts."""
        x = self.words(ids)
        for layer in self.layers:
            x = layer(x, x)
        return x


def _attend(q: Tensor, k: Tensor, v: Tensor, unused: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)
