"""Scaled dot-product attention, dense and sparse: heads and head sizes of queries, keys and values go together."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING

from torch import fx

from dsopt.ops.sparse_attention import picked
from dsopt.passes.prune.axes import fixed, is_fixed
from dsopt.passes.prune.rules.base import Call, Named, Resize, Result, Rule, Unknown, Widths, rank, result_sizes, tensor

if TYPE_CHECKING:
    from dsopt.passes.prune.inference import AxisInference


def _attention(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    """q: (.., H, T, D), k: (.., H, S, D), v: (.., H, S, E) -> (.., H, T, E); with grouped queries k and v have fewer heads."""
    q, k, v = (tensor(named[name]) for name in ("query", "key", "value"))
    if min(rank(q), rank(k), rank(v)) < 2:
        raise Unknown("its operands are no matrices")
    if not isinstance(inference.shape(q)[-1], int):
        raise Unknown("the size of its heads varies")
    inference.tie(k, rank(k) - 1, inference.dim(q, rank(q) - 1))
    inference.sums_over(inference.dim(q, rank(q) - 1), q, k)
    inference.tie(v, rank(v) - 2, inference.dim(k, rank(k) - 2))
    inference.pin_dims(k, (-2,), "each key changes the weights of all")
    inference.pin_dims(q, (-2,), "its rows are places, not channels")
    out = result_sizes(node)
    given = named["bias"] if "bias" in named else named["attn_mask"]
    mask = None if given is None else tensor(given)
    if named.get("enable_gqa", True) and inference.shape(q)[-3] != inference.shape(k)[-3]:
        _group_queries(inference, q, k, v)
    batch = []
    for index in range(len(out) - 2):
        place = index - len(out)
        holders = [(x, rank(x) + place) for x in (q, k, v) if rank(x) + place >= 0 and inference.shape(x)[place] != 1]
        same = [holder for holder in holders if inference.shape(holder[0])[place] == out[index]]
        expr = inference.dim(*same[0]) if same else fixed(out[index])
        for holder in same:
            inference.tie(*holder, expr)
        batch.append(expr)
    scores = (*batch, inference.dim(q, rank(q) - 2), inference.dim(k, rank(k) - 2))
    if mask is not None:
        for back in range(1, rank(mask) + 1):
            if inference.shape(mask)[-back] != 1:
                inference.tie(mask, rank(mask) - back, scores[-back])
    return (*batch, scores[-2], inference.dim(v, rank(v) - 1))


def _group_queries(inference: AxisInference, q: fx.Node, k: fx.Node, v: fx.Node) -> None:
    """The heads of q are (heads of k, queries to each)."""
    heads, fewer = inference.shape(q)[-3], inference.shape(k)[-3]
    groups, _ = inference.regroup(inference.dim(q, rank(q) - 3), fewer, heads // fewer)
    inference.tie(k, rank(k) - 3, groups)
    inference.tie(v, rank(v) - 3, groups)


def _freeze_scale(widths: Widths, node: fx.Node, named: Named) -> Call | None:
    """The default scale is 1 / sqrt(D): where D changes, that of the original is written down."""
    q = tensor(named["query"])
    expr = widths.inference.dim(q, rank(q) - 1)
    if named["scale"] is not None or is_fixed(expr) or not widths.is_cut(expr):
        return None
    return node.target, {**named, "scale": 1 / sqrt(int(widths.inference.shape(q)[-1]))}


def _resize_sparse(widths: Widths, node: fx.Node, named: Named) -> Call | None:
    """Heads take their budgets with them, and a share stays the number of keys that it was, where sizes do not vary."""
    inference = widths.inference
    frozen = _freeze_scale(widths, node, named)
    written = named if frozen is None else frozen[1]
    q, v = tensor(named["query"]), tensor(named["value"])
    sizes = [each for x in (q, v) for each in inference.shape(x)[2:]]
    is_narrower = any(widths.is_cut(inference.dim(each, 3)) for each in (q, v))
    if is_narrower and named["unit"] == "share" and all(isinstance(size, int) for size in sizes):
        queries, head, keys, value_head = map(int, sizes)
        budget = [
            float(picked(each, "share", queries, keys, head, value_head, named["tile"])) for each in named["budget"]
        ]
        written = {**written, "budget": budget, "unit": "keys"}
    expr = inference.dim(q, 1)
    if len(named["budget"]) > 1 and widths.is_cut(expr):
        kept = [each for each, is_kept in zip(written["budget"], widths.mask(expr), strict=True) if is_kept]
        written = {**written, "budget": kept}
    return None if written is named else (node.target, written)


RULES: dict[str, Rule] = {"scaled_dot_product_attention": _attention, "dsopt.sparse_attention": _attention}
RESIZES: dict[str, Resize] = {
    "scaled_dot_product_attention": _freeze_scale,
    "dsopt.sparse_attention": _resize_sparse,
}
