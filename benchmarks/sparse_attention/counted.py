"""Multiply-adds of the reference by its own counter, and how they grow with the sequence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.harness import Row, progress
from benchmarks.sparse_attention.budget import WINDOW, keys_of
from dsopt.ops.sparse_attention import Work, sparse_attention

LENGTHS = tuple(1024 << doubling for doubling in range(8))
QUICK_LENGTHS = LENGTHS[:5]
TILES = (16, 64)
HEAD = 64
"""Numbers of a query, a key and a value."""


def work_rows(lengths: Sequence[int], tiles: Sequence[int] = TILES) -> list[Row]:
    """Return a row for each length, and the slope of each tile over them."""
    rows: list[Row] = []
    for tile in tiles:
        own = []
        for n in lengths:
            progress(f"work: {n} keys, {tile} queries a tile")
            own.append(count(n, tile))
        rows += [*own, slope(own)]
    return rows


def count(n: int, tile: int, head: int = HEAD) -> Row:
    """Run one head on random queries, keys and values, and return what was counted, in multiply-adds."""
    generator = torch.Generator().manual_seed(n)
    query, key, value = (torch.randn(1, 1, n, head, generator=generator) for _ in range(3))
    picks, work = keys_of(n, tile, head, head), Work()
    with torch.inference_mode():
        sparse_attention(query, key, value, None, "none", None, [picks], "keys", tile, WINDOW, work)
    return {
        "measure": "work", "n": n, "share": work.share, "tile": tile, "keys": picks, **work.parts, "total": work.total, "dense": work.dense,
    }  # fmt: skip


def slope(rows: Sequence[Row]) -> Row:
    """Fit log(total) by log(n) with least squares, and find the longest step from a length to its double.

    n log n itself has a slope of 1.109 from 1,024 to 131,072, and 2.2 as its longest step.
    """
    n, total = (np.array([row[name] for row in rows], dtype=np.float64) for name in ("n", "total"))
    growth = total[1:] / total[:-1]
    return {
        "measure": "slope",
        "slope": float(np.polyfit(np.log(n), np.log(total), 1)[0]),
        "largest_growth": float(growth.max()),
        "tile": rows[0]["tile"],
        "first": rows[0]["n"],
        "last": rows[-1]["n"],
    }
