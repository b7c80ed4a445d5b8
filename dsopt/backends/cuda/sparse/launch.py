"""Buffers and launches: from tensors to what the kernels take. Nothing here waits for a GPU, so all of it can be captured in a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dsopt.backends.cuda.sparse import sizes
from dsopt.sparse_schedule import LEAF, Schedule, levels

DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
"""What the kernels compute with, and its name in Triton."""


@dataclass(frozen=True)
class Heads:
    """Heads that share a schedule, and what all kernels are given.

    query (B, H, T, D), key (B, K, S, D), value (B, K, S, E): the last dim without gaps.  bias: (B or 1, H or 1, S) float32, its highest
    number in each head 0, or None.  heads: their numbers, ascending.  offset: a query sees keys up to its number plus this, if causal.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | None
    heads: tuple[int, ...]
    plan: Schedule
    causal: bool
    offset: int
    scale: float
    tile: int
    window: int

    @property
    def problem(self) -> sizes.Problem:
        """Return what decides about code."""
        q = self.query
        is_old = q.device.type == "cuda" and torch.cuda.get_device_capability(q.device) < (9, 0)
        return sizes.Problem(
            DTYPES[q.dtype], q.shape[3], self.value.shape[3], self.tile, self.causal, self.bias is not None, "sm_80" if is_old else "sm_90"
        )  # fmt: skip

    @property
    def leaves(self) -> int:
        """Return the leaves of the pyramid."""
        return self.key.shape[2] // LEAF

    @property
    def nodes(self) -> int:
        """Return the nodes of all levels of the pyramid."""
        return sum(self.leaves >> level for level in range(levels(self.key.shape[2])))

    @property
    def pyramids(self) -> int:
        """Return the pyramids of a batch: one a head of keys, or one a head of queries where each has a bias of its own."""
        return self.query.shape[1] if self.bias is not None and self.bias.shape[1] > 1 else self.key.shape[1]

    @property
    def grid(self) -> tuple[int, int]:
        """Return tiles, and heads of all batches."""
        return -(-self.query.shape[2] // self.tile), self.query.shape[0] * len(self.heads)

    @property
    def room(self) -> int:
        """Return how many numbers hold the picks of a tile."""
        return max(-(-self.plan.picks // 16) * 16, 16)

    @property
    def node_rows(self) -> int:
        """Return how many rows hold the nodes of a tile, 0 where all keys are exact."""
        return 0 if self.plan.is_dense else sizes.node_rows(self.plan, self.leaves)

    def shared(self) -> dict[str, Any]:
        """Return the arguments that kernels of rows have in common."""
        q, k, v = self.query, self.key, self.value
        return {
            "Q": q, "K": k, "V": v, "HEADS": numbers(self.heads, q.device), **self.bias_arguments(), "scale": self.scale,
            "q_b": q.stride(0), "q_h": q.stride(1), "q_t": q.stride(2),
            "k_b": k.stride(0), "k_h": k.stride(1), "k_t": k.stride(2), "v_b": v.stride(0), "v_h": v.stride(1), "v_t": v.stride(2),
            "heads": q.shape[1], "kv_heads": k.shape[1], "listed": len(self.heads), "queries": q.shape[2], "keys": k.shape[2],
            "offset": self.offset, "tile": self.tile, "room": self.room,
        }  # fmt: skip

    def bias_arguments(self) -> dict[str, Any]:
        """Return the bias and its strides, 0 for a dim that it does not have."""
        bias = self.bias
        strides = [0, 0] if bias is None else [bias.stride(dim) if bias.shape[dim] > 1 else 0 for dim in (0, 1)]
        return {"BIAS": bias, "bias_b": strides[0], "bias_h": strides[1]}


@dataclass(frozen=True)
class Pyramid:
    """Sums of keys (B, pyramids, nodes, D), of values (..., E), and of weights and counts (..., 2) where there is a bias; float32."""

    keys: Tensor
    values: Tensor
    weights: Tensor | None


@dataclass(frozen=True)
class Selection:
    """What `select` stores for each of n tiles. The shapes are in its docstring."""

    picks: Tensor
    count: Tensor
    owner: Tensor
    node: Tensor
    rest_key: Tensor
    rest_value: Tensor
    rest_log: Tensor


_NUMBERS: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}


def numbers(values: tuple[int, ...], device: torch.device) -> Tensor:
    """Return numbers on a device, int32. They are kept: a copy to a GPU cannot be captured in a graph.

    What a graph makes holds nothing before the graph has run, so that is not kept.
    """
    found = _NUMBERS.get((values, device))
    if found is None:
        if values == tuple(range(len(values))):
            found = torch.arange(len(values), dtype=torch.int32, device=device)
        else:
            found = torch.tensor(values, dtype=torch.int32, device=device)
        if not (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
            _NUMBERS[values, device] = found
    return found


def launch(kernel: Any, grid: tuple[int, ...], how: sizes.Launch, arguments: dict[str, Any]) -> None:
    """Start a kernel with those of the arguments that it has."""
    given = {name: value for name, value in arguments.items() if name in kernel.arg_names}
    kernel[grid](
        **given,
        **{k: v for k, v in how.constants.items() if k in kernel.arg_names},
        num_warps=how.warps,
        num_stages=how.stages,
    )


def build_pyramid(some: Heads) -> Pyramid:
    """Add up keys and values of all heads. One launch."""
    from dsopt.backends.cuda.sparse.kernels.pool import pool

    q, k, v = some.query, some.key, some.value
    lead = (q.shape[0], some.pyramids, some.nodes)
    weights = None if some.bias is None else q.new_empty((*lead, 2), dtype=torch.float32)
    sums = [q.new_empty((*lead, each.shape[3]), dtype=torch.float32) for each in (k, v)]
    made = Pyramid(sums[0], sums[1], weights)
    how = sizes.pool_launch(some.problem, some.plan)
    parts = sum(-(-each.shape[3] // int(how.constants["C"])) for each in (k, v)) + (some.bias is not None)
    launch(
        pool, (-(-some.leaves >> some.plan.top), q.shape[0] * some.pyramids, parts), how,
        {
            **some.shared(), "KEY_SUMS": made.keys, "VALUE_SUMS": made.values, "WEIGHTS": weights, "pyramids": some.pyramids,
            "leaves": some.leaves, "nodes": some.nodes, "top": some.plan.top,
        },
    )  # fmt: skip
    return made


def select(some: Heads, pyramid: Pyramid) -> Selection:
    """Search the keys of every tile and cover the others. One launch."""
    from dsopt.backends.cuda.sparse.kernels.select import select as kernel

    q, plan = some.query, some.plan
    jobs, rows, how = some.grid[0] * some.grid[1], some.node_rows, sizes.select_launch(some.problem, plan, some.leaves)

    def ints(width: int) -> Tensor:
        return q.new_empty((jobs, width), dtype=torch.int32)

    made = Selection(
        ints(some.room), q.new_empty((jobs,), dtype=torch.int32), ints(some.room), ints(rows),
        q.new_empty((jobs, rows, q.shape[3])), q.new_empty((jobs, rows, some.value.shape[3])),
        q.new_empty((jobs, rows), dtype=torch.float32),
    )  # fmt: skip
    launch(
        kernel, some.grid, how,
        {
            **some.shared(), "KEY_SUMS": pyramid.keys, "VALUE_SUMS": pyramid.values, "WEIGHTS": pyramid.weights,
            "PROBE": q.new_empty((jobs, int(how.constants["DP"])), dtype=torch.float32), "LIST": ints(int(how.constants["N_LEVEL"])),
            "PICKS": made.picks, "COUNT": made.count, "OWNER": made.owner, "NODE": made.node, "FIRST": ints(rows), "SIZE": ints(rows),
            "REST_K": made.rest_key, "REST_V": made.rest_value, "REST_LOG": made.rest_log, "pyramids": some.pyramids,
            "leaves": some.leaves, "nodes": some.nodes, "window": some.window,
            "first": plan.first, "top": plan.top, "fine": plan.fine, "beam": plan.beam, "picks": plan.picks,
        },
    )  # fmt: skip
    return made


def selected(made: Selection | None, like: Tensor) -> dict[str, Any]:
    """Return what kernels are given of a selection; without one, pointers that are not read."""
    if made is None:
        return dict.fromkeys(("PICKS", "COUNT", "OWNER", "NODE", "REST_K", "REST_V", "REST_LOG"), like)
    return {
        "PICKS": made.picks, "COUNT": made.count, "OWNER": made.owner, "NODE": made.node,
        "REST_K": made.rest_key, "REST_V": made.rest_value, "REST_LOG": made.rest_log,
    }  # fmt: skip


def forward(some: Heads, made: Selection | None, result: Tensor, lse: Tensor) -> None:
    """Attend in some heads. result: (B, H, T, E), lse: (B, H, T) float32, without gaps. One launch."""
    from dsopt.backends.cuda.sparse.kernels.forward import forward as kernel

    how = sizes.forward_launch(some.problem, some.node_rows)
    launch(kernel, some.grid, how, {**some.shared(), **selected(made, some.query), "O": result, "LSE": lse})
