"""The backward launches, and the inverse of lists: from what tiles have in their lists to who has what.

The maths stands in `kernels/backward.py`. Sorting is stable, so sums have one order and gradients are the same at every run.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dsopt.backends.cuda.sparse import sizes
from dsopt.backends.cuda.sparse.launch import Heads, Selection, launch, numbers, selected


class Inverse(NamedTuple):
    """Entries of lists by the place that they name; int32.

    order (n,): entries, sorted.  places (n,): what they name, ascending.  start (places + 1,): the first entry of each place.
    """

    order: Tensor
    places: Tensor
    start: Tensor


class Rows(NamedTuple):
    """The gradients of the rows of a list: keys (n, width, D) and values (n, width, E), float32."""

    key: Tensor
    value: Tensor


def inverse(named: Tensor, is_entry: Tensor, places: int) -> Inverse:
    """Invert lists. named: int64, the place of each entry."""
    if max(named.numel(), places) >= 2**31:
        raise ValueError(f"{named.numel()} entries and {places} places are more than 32 bits can count")
    flat = torch.where(is_entry, named, places).flatten().to(torch.int32)
    ordered, order = torch.sort(flat, stable=True)
    wanted = torch.arange(places + 1, dtype=torch.int32, device=flat.device)
    return Inverse(order.to(torch.int32), ordered, torch.searchsorted(ordered, wanted, out_int32=True))


def backward(
    some: Heads,
    made: Selection | None,
    result: Tensor,
    lse: Tensor,
    grad: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    adds: bool,
) -> None:
    """Compute the gradients of some heads. result, grad: (B, H, T, E).  dq: (B, H, T, D).  dk, dv: (B, K, S, ...); adds: to what is there.

    All without gaps. Raises ValueError for lists too long for 32 bits.
    """
    delta = torch.empty_like(lse)
    nodes, picks = _tiles(some, made, result, lse, grad, delta, dq)
    _keys(some, made, nodes, picks, lse, grad, delta, dk, dv, adds)


def _rows(some: Heads, width: int) -> Rows:
    jobs = some.grid[0] * some.grid[1]
    return Rows(
        *(some.query.new_empty((jobs, width, each.shape[3]), dtype=torch.float32) for each in (some.key, some.value))
    )


def _tiles(
    some: Heads, made: Selection | None, result: Tensor, lse: Tensor, grad: Tensor, delta: Tensor, dq: Tensor
) -> tuple[Rows, Rows]:
    from dsopt.backends.cuda.sparse.kernels.backward import backward as kernel

    nodes, picks = (_rows(some, 0 if made is None else width) for width in (some.node_rows, some.room))
    how = sizes.backward_launch(some.problem, some.node_rows)
    launch(
        kernel, some.grid, how,
        {
            **some.shared(), **selected(made, some.query), "O": result, "DO": grad, "LSE": lse, "DELTA": delta, "DQ": dq,
            "NODE_DK": nodes.key, "NODE_DV": nodes.value, "PICK_DK": picks.key, "PICK_DV": picks.value,
        },
    )  # fmt: skip
    return nodes, picks


def _keys(
    some: Heads, made: Selection | None, nodes: Rows, picks: Rows, lse: Tensor, grad: Tensor, delta: Tensor, dk: Tensor, dv: Tensor,
    adds: bool,
) -> None:  # fmt: skip
    from dsopt.backends.cuda.sparse.kernels.keys import keys_backward

    batch, heads, _, _ = some.query.shape
    kv_heads, keys = some.key.shape[1], some.key.shape[2]
    if made is None:
        none = torch.empty(0, dtype=torch.int32, device=dk.device)
        by_key, sums = Inverse(none, none, none), nodes
    else:
        slot = torch.arange(some.room, device=dk.device)
        first = _first_place(some, kv_heads, keys)
        by_key = inverse(made.picks + first, slot < made.count[:, None], batch * kv_heads * keys)
        first = _first_place(some, some.pyramids, some.nodes)
        by_node = inverse(made.node + first, made.node >= 0, batch * some.pyramids * some.nodes)
        sums = Rows(*(_sums(some, rows, by_node) for rows in nodes))
    how = sizes.keys_launch(some.problem, made is not None, adds)
    launch(
        keys_backward, (-(-keys // int(how.constants["BLOCK"])), batch * kv_heads), how,
        {
            **some.shared(), "FIRST_HEAD": numbers(_first_heads(some.heads, heads // kv_heads, kv_heads), dk.device), "DO": grad,
            "LSE": lse, "DELTA": delta, "PICK_DK": picks.key, "PICK_DV": picks.value, "ORDER": by_key.order, "SORTED": by_key.places,
            "START": by_key.start, "NODE_DK": sums.key, "NODE_DV": sums.value, "DK": dk, "DV": dv, "pyramids": some.pyramids,
            "leaves": some.leaves, "nodes": some.nodes, "top": some.plan.top,
        },
    )  # fmt: skip


def _first_place(some: Heads, owners: int, places: int) -> Tensor:
    """Return the first place of each tile's owner (n, 1), int64: of a head of keys or a pyramid, of which a batch has `owners`."""
    heads = numbers(some.heads, some.query.device).to(torch.int64) // (some.query.shape[1] // owners)
    batch = torch.arange(some.query.shape[0], device=heads.device)
    owner = batch[:, None] * owners + heads
    return (owner.flatten() * places).repeat_interleave(some.grid[0])[:, None]


def _first_heads(heads: tuple[int, ...], group: int, kv_heads: int) -> tuple[int, ...]:
    """Return, for each head of keys and one more, how many of the heads of queries belong to those before."""
    return tuple(sum(head // group < kv for head in heads) for kv in range(kv_heads + 1))


def _sums(some: Heads, rows: Tensor, by_node: Inverse) -> Tensor:
    """Add up rows (n, width, C) by what they name. Returns (places, C) float32."""
    from dsopt.backends.cuda.sparse.kernels.keys import sum_rows

    places, width = by_node.start.numel() - 1, rows.shape[2]
    sums = rows.new_empty((places, width))
    how = sizes.sum_launch(some.problem, width)
    launch(
        sum_rows, (-(-places // int(how.constants["BLOCK"])),), how,
        {"LIST_ROWS": rows, "ORDER": by_node.order, "SORTED": by_node.places, "START": by_node.start, "SUMS": sums, "places": places},
    )  # fmt: skip
    return sums
