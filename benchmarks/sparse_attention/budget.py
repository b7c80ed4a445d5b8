"""The one schedule of this benchmark: what is counted, what is compared with dense attention and what is timed look at the same keys."""

from __future__ import annotations

from math import prod

from dsopt import Program
from dsopt.ir.multiply_adds import multiply_adds
from dsopt.sparse_schedule import picked, schedule, work

SHARE = 0.15
"""Of the multiply-adds of dense attention, selection included: never more."""

KEYS_PER_DOUBLING = {1: 13.5, 16: 11.5, 64: 13.5}
"""Keys for each doubling of the sequence, by queries a tile: so many as come to about `SHARE` at 1,024 keys. A search by each query
alone (1) costs more than that at 1,024 keys; it gets as many keys as the longest tile."""

WINDOW = 0
"""Keys at a tile's own place are picked where they score high, as all others: 2 more on both sides made texts of 512 worse."""


def keys_of(n: int, tile: int, head: int, value_head: int) -> int:
    """Return how many keys a tile picks of `n`: KEYS_PER_DOUBLING, and for several queries a tile no more than `SHARE` pays for."""
    logarithmic = picked(KEYS_PER_DOUBLING[tile], "log2", n, n, head, value_head, tile)
    return logarithmic if tile == 1 else min(logarithmic, picked(SHARE, "share", n, n, head, value_head, tile))


def share_of(n: int, tile: int, head: int, value_head: int) -> float:
    """Return the part of dense attention's multiply-adds that this takes, by the formula that the counter agrees with."""
    plan = schedule(n, keys_of(n, tile, head, value_head))
    return work(plan, n, n, head, value_head, tile) / (n * n * (head + value_head))


def attention_share(program: Program) -> float:
    """Return the part of dense multiply-adds, without regard to causal masks, that all attention of a program takes."""
    taken = dense = 0
    for node in program.graph.nodes:
        if str(node.target) in ("dsopt.sparse_attention.default", "aten.scaled_dot_product_attention.default"):
            query, keys = node.args[0].meta["val"].shape, node.args[1].meta["val"].shape[2]
            dense += prod(query[:3]) * keys * (query[3] + node.meta["val"].shape[3])
            taken += multiply_adds(node)
    return float(taken / dense)  # the batch, which may vary, cancels out
