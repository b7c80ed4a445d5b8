"""Which attention could be sparse, and why the rest stays as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from dsopt.ir import Program, Rewriter
from dsopt.ir.torch_private import hint_of, named_arguments, same_size
from dsopt.passes.sparse_attention.masks import Hidden, UnsuitedError, read_mask
from dsopt.target import Target

ATTENTION = torch.ops.aten.scaled_dot_product_attention.default

CROSSOVER = {"cpu": 128}
"""Keys from which on sparse attention is faster than dense, by target family (benchmarks/sparse_attention measures it)."""


@dataclass(frozen=True)
class Sizes:
    """queries, keys: T and S, of the example where they vary.  head, value_head: D and E.  varies: whether S varies.

    tile: queries that share a list of keys.
    """

    heads: int
    queries: int
    keys: int
    head: int
    value_head: int
    varies: bool
    tile: int = 1


@dataclass(frozen=True)
class Candidate:
    """An attention that sparse attention could stand for."""

    node: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    scale: float | None
    hidden: Hidden
    sizes: Sizes


def find_candidates(
    program: Program, rewriter: Rewriter, target: Target | None, at_least: int | None
) -> list[Candidate]:
    """Return all that could be sparse in order, and record why others could not. at_least: keys; None: the target's crossover."""
    kind = "" if target is None else target.kind
    least = CROSSOVER.get(kind, CROSSOVER["cpu"]) if at_least is None else at_least
    found = []
    for node in [each for each in program.graph.nodes if each.target is ATTENTION]:
        try:
            if kind not in ("", *CROSSOVER):
                raise UnsuitedError(f"there is no sparse attention for {kind} yet")
            found.append(_candidate(rewriter, node, least))
        except UnsuitedError as reason:
            rewriter.skip(node, f"stays dense: {reason}")
    return found


def _candidate(rewriter: Rewriter, node: fx.Node, least: int) -> Candidate:
    given: dict[str, Any] = named_arguments(node)
    query, key, value = (given[name] for name in ("query", "key", "value"))
    if given.get("dropout_p"):
        raise UnsuitedError("its weights are dropped out in training")
    shapes = [each.meta["val"].shape for each in (query, key, value)]
    if any(len(shape) != 4 for shape in shapes):
        raise UnsuitedError(f"its query has {len(shapes[0])} dims, and batch, heads, queries and size are needed")
    sizes = _sizes(shapes)
    if sizes.keys < least:
        raise UnsuitedError(f"it has {sizes.keys} keys, and sparse attention is faster from {least} on")
    mask = given.get("attn_mask")
    hidden = read_mask(rewriter, mask, bool(given.get("is_causal")), node)
    return Candidate(node, query, key, value, given.get("scale"), hidden, sizes)


def _sizes(shapes: list[torch.Size]) -> Sizes:
    query, key, value = shapes
    batches = same_size(query[0], key[0]) and same_size(query[0], value[0])
    if (
        not batches
        or not same_size(key[1], value[1])
        or not all(isinstance(size, int) for s in shapes for size in (s[1], s[3]))
    ):
        raise UnsuitedError("batches or heads are broadcast, or heads vary")
    if query[1] % key[1]:
        raise UnsuitedError(f"{query[1]} heads of queries are no multiple of {key[1]} heads of keys")
    return Sizes(query[1], hint_of(query[2]), hint_of(key[2]), query[3], value[3], not isinstance(key[2], int))
