"""What the caller of the kernel of sparse attention and its code agree on: the order of numbers, and the places in work memory."""

from __future__ import annotations

from dsopt.sparse_schedule import LEAF, Schedule

FLOAT_PARTS = (
    "probe",
    "packed",
    "score",
    "panel_key",
    "panel_value",
    "added",
    "logits",
    "sums",
    "highest",
    "total",
    "shrink",
)
"""Parts of a thread's float32 memory."""

INTEGER_PARTS = ("listed", "kept", "picked", "cover_first", "cover_level", "cover_index", "limit", "state")
"""Parts of a thread's int32 memory."""

NUMBERS = (
    "queries", "keys", "query_row", "key_row", "value_row", "out_row", "tile", "first_tile", "last_tile", "causal", "offset",
    "near_before", "near_behind", "picks", "beam", "first", "top", "fine", "leaves", "levels", "trace_row",
    *FLOAT_PARTS, *INTEGER_PARTS,
)  # fmt: skip
"""int64 numbers of a call. *_row: elements from one row to the next.  causal: 0 or 1; offset: place of query 0 among the keys.
near_before, near_behind: the near keys are those from the tile's first place less the one to it plus the other.
trace_row: int32 elements of a tile's record of what was chosen, 0 for none.  A part: its first element."""

LEVEL_BASES = 48
"""Place of the first of 32 numbers: which node is the first of each level."""

LENGTH = LEVEL_BASES + 32
"""Numbers of a call."""

SCALE, ZERO = range(2)
"""Places of the floats of a call. Zero is told at run time: of a loop that writes a known zero LLVM makes a call of memset, and the code
needs nothing of the C library."""

ROW_LANES = 8
"""Rows are read in vectors of this many elements."""

DENSE_TILE = 64
"""Queries that a head without search handles together."""

MOST_LANES, MOST_CHUNK, MOST_BLOCK = 16, 96, 16
"""No level has longer vectors, larger chunks of rows, or larger blocks of a micro-kernel."""

_SLACK = 16
"""Lists are read in whole vectors, and one element is written behind their ends."""


def padded(size: int, step: int = ROW_LANES) -> int:
    """Return the next multiple."""
    return -(-size // step) * step


def cover_bound(plan: Schedule, leaves: int) -> int:
    """Return how many nodes a cover has at most."""
    return (leaves >> plan.top) + 9 * plan.top + 1


def part_sizes(plan: Schedule, keys: int, tile: int, head: int, value_head: int) -> dict[str, int]:
    """Return the elements of each part of a thread's memory, for one schedule. head, value_head: padded."""
    leaves, rows = keys // LEAF, padded(tile, MOST_LANES)
    if plan.is_dense:
        scored = nodes = picks = beam = 0
        panel = MOST_CHUNK + MOST_BLOCK
    else:
        nodes, picks, beam = cover_bound(plan, leaves), plan.picks, plan.beam
        scored = max(leaves >> plan.first, (leaves >> plan.top) + 1, LEAF * beam)
        panel = picks + nodes + 1 + tile + LEAF + MOST_BLOCK
    scored, kept = scored + _SLACK, beam + _SLACK
    floats = (
        head, rows * head, scored, panel * head, panel * value_head, panel, rows * MOST_CHUNK, rows * value_head, rows, rows, rows
    )  # fmt: skip
    integers = (scored, kept, picks + _SLACK, *[nodes + _SLACK] * 3, rows, _SLACK)
    return dict(zip((*FLOAT_PARTS, *INTEGER_PARTS), (padded(each, 16) for each in (*floats, *integers)), strict=True))


def places(sizes: dict[str, int], parts: tuple[str, ...]) -> tuple[dict[str, int], int]:
    """Return the first element of each part, one behind the other, and the sum of all."""
    found, end = {}, 0
    for part in parts:
        found[part] = end
        end += sizes[part]
    return found, end
