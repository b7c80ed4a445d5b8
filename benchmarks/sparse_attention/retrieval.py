"""Whether a search finds the one key that a query looks for, among random ones.

Keys are random, N(0, 1); a query is one of them, the needle, with noise N(0, 1/16) on each number. With `a needle a tile`, all
queries of a tile look for the same key; with `a needle a query`, each for its own, and has a search and a list of its own; with
`needles in one list`, each for its own in a list that the tile shares: what no shared list can serve.
"""

from __future__ import annotations

import math

import torch

from benchmarks.harness import Row, progress
from benchmarks.sparse_attention.budget import keys_of, share_of
from dsopt.ops.sparse_attention import Work
from dsopt.ops.sparse_attention.pyramid import build
from dsopt.ops.sparse_attention.search import Tiles, find_keys
from dsopt.sparse_schedule import LEAF, schedule

LENGTHS = (1024, 4096)
OWN, SHARED, MIXED = "a needle a query", "a needle a tile", "needles in one list"
CASES = ((1, OWN), (16, SHARED), (64, SHARED), (16, MIXED), (64, MIXED))
NOISE = 0.25
HEAD = 64
HEADS, NEEDLES = 8, 128
"""Sets of keys, and needles in each."""


def retrieval_rows(heads: int = HEADS) -> list[Row]:
    """Return a row for each length and case."""
    rows: list[Row] = []
    for n in LENGTHS:
        for tile, pattern in CASES:
            progress(f"retrieval: {n} keys, {pattern}, {tile} queries a tile")
            rows.append(
                {
                    "measure": "retrieval",
                    "n": n,
                    "tile": tile,
                    "pattern": pattern,
                    "found": found(n, tile, pattern, heads),
                    "keys": keys_of(n, tile, HEAD, HEAD),
                    "share": share_of(n, tile, HEAD, HEAD),
                }
            )
    return rows


def found(n: int, tile: int, pattern: str, heads: int) -> float:
    """Return the share of queries whose tile picked the key that they look for."""
    generator = torch.Generator().manual_seed(n)
    key = torch.randn(heads, n, HEAD, generator=generator)
    needle = torch.randint(0, n, (heads, NEEDLES), generator=generator)
    if pattern == SHARED:
        needle = needle.repeat_interleave(tile, 1)
    sought = key.gather(1, needle[..., None].expand(-1, -1, HEAD))
    query = sought + NOISE * torch.randn(sought.shape, generator=generator)
    probe = query.view(heads, -1, tile, HEAD).mean(2) / math.sqrt(HEAD)
    count = probe.shape[1]
    tiles = Tiles(probe, torch.full((count,), n // LEAF), torch.zeros((count, 2), dtype=torch.int64))
    work = Work()
    pyramid = build(key, key, torch.ones(heads, n), work)
    chosen = find_keys(tiles, pyramid, key, torch.zeros(heads, n), schedule(n, keys_of(n, tile, HEAD, HEAD)), work)
    index = torch.where(chosen.is_valid, chosen.index, -1)
    hit = (index[:, :, None] == needle.view(heads, count, tile, 1)).any(-1)
    return float(hit.double().mean())
