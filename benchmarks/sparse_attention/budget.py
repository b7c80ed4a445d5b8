"""The one schedule of this benchmark: what is counted, what is compared with dense attention and what is timed look at the same keys."""

from __future__ import annotations

from dsopt.ops.sparse_attention.schedule import picked, schedule, work

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
