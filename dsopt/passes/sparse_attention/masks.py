"""What a mask hides: keys, the same ones from every query; or, in a causal mask, what comes after a query."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from dsopt.ir import Program, Rewriter
from dsopt.ir.interpret import evaluate
from dsopt.ir.torch_private import same_size

_ATEN = torch.ops.aten
_BOTH = (_ATEN.logical_and.default, _ATEN.bitwise_and.Tensor, _ATEN.__and__.Tensor, _ATEN.mul.Tensor)
_SAME = (_ATEN.expand.default, _ATEN.clone.default, _ATEN.contiguous.default)

HIDDEN_BELOW = -1e9
"""An additive mask hides what it lowers by this much: exp(-1e9) is 0 in every dtype."""


class UnsuitedError(Exception):
    """Attention that stays dense, and why."""


@dataclass(frozen=True)
class Hidden:
    """causal: as of dsopt::sparse_attention.  bias: a node (B or 1, H or 1, 1, S), None for none."""

    causal: str = "none"
    bias: fx.Node | None = None


def read_mask(rewriter: Rewriter, mask: fx.Node | None, is_causal: bool, like: fx.Node) -> Hidden:
    """Tell what a mask of scaled_dot_product_attention hides. Raises UnsuitedError where it differs from query to query otherwise."""
    start = Hidden("start" if is_causal else "none")
    return start if mask is None else _joined(rewriter, start, _read(rewriter, mask, like), like)


def _read(rewriter: Rewriter, mask: fx.Node, like: fx.Node) -> Hidden:
    keys = like.args[1].meta["val"].shape[2]  # type: ignore[union-attr]
    shape = mask.meta["val"].shape
    if len(shape) < 2 or same_size(shape[-2], 1):
        return Hidden(bias=_as_rank_4(rewriter, mask, keys, like))
    constant = _constant(rewriter.program, mask)
    if constant is not None:
        return _read_constant(rewriter, mask, constant, like)
    if mask.op == "call_function" and mask.target in _SAME and isinstance(mask.args[0], fx.Node):
        return _read(rewriter, mask.args[0], like)
    is_bool = mask.meta["val"].dtype == torch.bool
    if mask.op == "call_function" and mask.target in (_BOTH if is_bool else (_ATEN.add.Tensor,)) and not mask.kwargs:
        left, right = mask.args[:2]
        if isinstance(left, fx.Node) and isinstance(right, fx.Node):
            return _joined(rewriter, _read(rewriter, left, like), _read(rewriter, right, like), like)
    raise UnsuitedError(
        f"its mask {list(rewriter.program.shape(mask))} may differ from query to query, and keys are chosen for several at a time"
    )


def _as_rank_4(rewriter: Rewriter, mask: fx.Node, keys: Any, like: fx.Node) -> fx.Node:
    shape = mask.meta["val"].shape
    if not same_size(shape[-1], keys):
        raise UnsuitedError(f"its mask {list(rewriter.program.shape(mask))} has no number for each key")
    for _ in range(4 - len(shape)):
        mask = rewriter.call(_ATEN.unsqueeze.default, mask, 0, like=like)
    return mask


def _constant(program: Program, node: fx.Node) -> Tensor | None:
    """Return the value of a node that depends on no input and no state, None for others."""
    needed: dict[fx.Node, None] = {}
    stack = [node]
    weights = dict(zip(program.placeholders, program.signature.weights, strict=False))
    while stack:
        each = stack.pop()
        if each in needed:
            continue
        if each.op == "placeholder" and each not in weights:
            return None
        if any(not isinstance(size, int) for size in getattr(each.meta.get("val"), "shape", ())):
            return None
        needed[each] = None
        stack.extend(each.all_input_nodes)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for each in program.graph.nodes:
        if each in needed:
            copies[each] = graph.node_copy(each, lambda item: copies[item])
    graph.output((copies[node],))
    bound = {copies[each]: program.weights[spec.name] for each, spec in weights.items() if each in needed}
    with torch.no_grad():
        value = evaluate(graph, bound)[0]
    return value if isinstance(value, Tensor) else None


def _read_constant(rewriter: Rewriter, mask: fx.Node, value: Tensor, like: fx.Node) -> Hidden:
    """Tell a causal mask, or one whose rows are all the same, by its numbers."""
    hides = ~value if value.dtype == torch.bool else value <= HIDDEN_BELOW
    if value.dtype == torch.bool or bool((hides | (value == 0)).all()):
        queries, keys = value.shape[-2:]
        for causal, offset in (("start", 0), ("end", keys - queries)):
            after = torch.ones(queries, keys, dtype=torch.bool).triu(1 + offset)
            if torch.equal(hides, after.expand_as(hides)):
                return Hidden(causal)
    if torch.equal(value, value[..., :1, :].expand_as(value)):
        first = rewriter.call(_ATEN.slice.Tensor, mask, value.dim() - 2, 0, 1, like=like)
        return Hidden(bias=_as_rank_4(rewriter, first, value.shape[-1], like))
    raise UnsuitedError("its mask is a constant that differs from query to query in another way than a causal one")


def _joined(rewriter: Rewriter, left: Hidden, right: Hidden, like: fx.Node) -> Hidden:
    causal = {left.causal, right.causal} - {"none"}
    if len(causal) > 1:
        raise UnsuitedError("two causal masks with different places are combined")
    biases = [each.bias for each in (left, right) if each.bias is not None]
    if len(biases) == 2:
        first, second = (_added(rewriter, each, like) for each in biases)
        biases = [rewriter.call(_ATEN.add.Tensor, first, second, like=like)]
    return Hidden(next(iter(causal), "none"), biases[0] if biases else None)


def _added(rewriter: Rewriter, bias: fx.Node, like: fx.Node) -> fx.Node:
    """Return a bias in floats."""
    if bias.meta["val"].dtype != torch.bool:
        return bias
    numbers = rewriter.call(_ATEN.where.Scalar, bias, 0.0, -math.inf, like=like)
    return rewriter.call(_ATEN.to.dtype, numbers, like.meta["val"].dtype, like=like)
