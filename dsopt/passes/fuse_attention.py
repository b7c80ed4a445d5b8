"""fuse-attention: softmax(q k^T) v written by hand becomes one scaled_dot_product_attention, so that later passes see one node."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from dsopt.ir import Program, Rewriter
from dsopt.passes.base import Pass, PassContext

_ATEN = torch.ops.aten
_SOFTMAX = {_ATEN.softmax.int, _ATEN._softmax.default}
_MATMUL = {_ATEN.matmul.default, _ATEN.bmm.default}
_TRANSPARENT = {_ATEN.dropout.default, _ATEN.clone.default, _ATEN.contiguous.default, _ATEN.detach.default}

VANISHING = 1e9
"""A finite fill this large swallows any score in float32 (ulp(1e9) = 64), so adding it equals replacing the score by it."""


class _RefusalError(Exception):
    """The softmax is attention's, and a detail of it has no counterpart."""


@dataclass
class _Scores:
    """What stands before the softmax: q k^T scale + mask."""

    query: fx.Node | None = None
    key: fx.Node | None = None
    is_key_transposed: bool = False
    scale: float = 1.0
    masks: list[tuple[fx.Node, float]] = field(default_factory=list)
    fills: list[tuple[fx.Node, float, bool]] = field(default_factory=list)
    equation: str | None = None


@dataclass(frozen=True)
class FuseAttention(Pass):
    """matmul(softmax(matmul(q, k^T) * s + m), v) -> scaled_dot_product_attention(q, k, v, m, scale=s).

    Understands matmul, bmm, baddbmm and einsum; the scale on the scores, on q or on k, as factor or divisor; additive masks;
    masked_fill and where with -inf or a vanishing number; dropout. nn.MultiheadAttention exports as one of these forms.
    Vaswani et al. 2017, section 3.2.1.
    """

    name: ClassVar[str] = "fuse-attention"

    def run(self, program: Program, rewriter: Rewriter, context: PassContext) -> None:
        """Fuse every softmax over the last axis that stands between two products."""
        rewriter.erase_dead()
        for node in list(program.graph.nodes):
            if node.op != "call_function" or node.target not in _SOFTMAX:
                continue
            try:
                _fuse(program, rewriter, node)
            except _RefusalError as reason:
                rewriter.skip(node, str(reason))


def _fuse(program: Program, rewriter: Rewriter, softmax: fx.Node) -> None:
    product = _product_of_weights(softmax)
    scores = _read_scores(program, softmax.args[0]) if product is not None else None
    if product is None or scores is None:
        return
    axis, rank = softmax.args[1], softmax.meta["val"].dim()
    if axis not in (-1, rank - 1):
        raise _RefusalError(f"its softmax runs over axis {axis}, not over the keys")
    query, key, value, order = _operands(rewriter, scores, product, softmax)
    shapes = [item.meta["val"].shape for item in (query, key, value)]
    if not all([str(s) for s in shape[:-2]] == [str(s) for s in shapes[0][:-2]] for shape in shapes):
        raise _RefusalError("query, key and value have different batch or head dims")
    if not query.meta["val"].is_floating_point():
        raise _RefusalError("its inputs are no floating point numbers")
    mask = _mask(rewriter, scores, softmax)
    fused = rewriter.call(
        _ATEN.scaled_dot_product_attention.default, query, key, value, mask, 0.0, False, like=product, scale=scores.scale
    )  # fmt: skip
    if order is not None:
        fused = rewriter.call(_ATEN.permute.default, fused, order, like=product)
    rewriter.replace(product, fused)


# ---- after the softmax ----


def _product_of_weights(softmax: fx.Node) -> fx.Node | None:
    """Return the product of the attention weights with v, through dropout and casts; None if there is none."""
    node = softmax
    while True:
        users = list(node.users)
        products = [user for user in users if _is_product(user) and _left_operand(user) is node]
        if products:
            if len(users) > 1:
                raise _RefusalError("its attention weights are used elsewhere too")
            return products[0]
        guard = _nan_guard(node, users)
        if guard is None and (len(users) != 1 or users[0].target not in _TRANSPARENT):
            return None
        node = guard or users[0]


def _nan_guard(node: fx.Node, users: list[fx.Node]) -> fx.Node | None:
    """Return where(isnan(w), 0, w) of attention weights w, if that is what uses them.

    torch.onnx writes it for queries that see no key at all, for which scaled_dot_product_attention gives 0 as well.
    """
    tests = [user for user in users if user.target is _ATEN.isnan.default]
    guards = [user for user in users if user.target is _ATEN.where.ScalarSelf]
    if len(users) != 2 or len(tests) != 1 or len(guards) != 1 or list(tests[0].users) != guards:
        return None
    return guards[0] if guards[0].args == (tests[0], 0.0, node) else None


def _is_product(node: fx.Node) -> bool:
    return node.target in _MATMUL or (node.target is _ATEN.einsum.default and len(_terms(node)[0]) == 2)


def _left_operand(node: fx.Node) -> Any:
    operands: Any = node.args[1] if node.target is _ATEN.einsum.default else node.args
    return operands[0]


def _terms(node: fx.Node) -> tuple[list[str], str]:
    left, _, right = str(node.args[0]).replace(" ", "").partition("->")
    return left.split(","), right


# ---- before the softmax ----


def _read_scores(program: Program, node: Any) -> _Scores | None:
    """Walk up from the softmax through masks, scales and casts to the product of q and k."""
    scores = _Scores()
    factor = 1.0
    while isinstance(node, fx.Node):
        if node.op != "call_function" or len(node.users) > 1:
            return None
        target: Any = node.target
        args: Any = node.args
        alpha: Any = node.kwargs.get("alpha", 1)
        if target is _ATEN.add.Tensor and alpha == 1:
            product, mask = _scored_side(args)
            if product is None:
                return None
            scores.masks.append((mask, factor))
            node = product
        elif target in (_ATEN.mul.Tensor, _ATEN.div.Tensor, _ATEN.mul.Scalar, _ATEN.div.Scalar):
            number = _number(program, args[1])
            if number is None:
                return None
            factor *= number if "mul" in str(target) else 1.0 / number
            node = args[0]
        elif target is _ATEN.masked_fill.Scalar or (target is _ATEN.masked_fill.Tensor):
            scores.fills.append((_node(args[1]), _fill(program, args[2]), False))
            node = args[0]
        elif target in (_ATEN.where.self, _ATEN.where.ScalarOther):
            scores.fills.append((_node(args[0]), _fill(program, args[2]), True))
            node = args[1]
        elif target is _ATEN.baddbmm.default:
            if node.kwargs.get("beta", 1) != 1:
                return None
            scores.masks.append((_node(args[0]), factor))
            scores.scale = factor * float(alpha)
            return _read_operands(program, scores, args[1], args[2])
        elif target in _MATMUL:
            scores.scale = factor
            return _read_operands(program, scores, args[0], args[1])
        elif target is _ATEN.einsum.default and len(_terms(node)[0]) == 2:
            scores.scale, scores.equation = factor, str(args[0])
            operands: Any = args[1]
            return _read_operands(program, scores, operands[0], operands[1])
        else:
            return None
    return None


def _scored_side(args: tuple[Any, ...]) -> tuple[fx.Node | None, fx.Node]:
    """Tell the scores from the mask in an addition: the scores lead to a product."""
    left, right = args
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node):
        return None, left
    return (left, right) if _leads_to_product(left) else (right, left) if _leads_to_product(right) else (None, left)


def _leads_to_product(node: fx.Node) -> bool:
    for _ in range(6):
        if node.op != "call_function":
            return False
        if node.target in _MATMUL or node.target in (_ATEN.baddbmm.default, _ATEN.einsum.default):
            return True
        source = (
            node.args[1]
            if node.target in (_ATEN.where.self, _ATEN.where.ScalarOther)
            else node.args[0]
            if node.args
            else None
        )
        if not isinstance(source, fx.Node):
            return False
        node = source
    return False


def _read_operands(program: Program, scores: _Scores, query: Any, key: Any) -> _Scores:
    """Take scales off q and k, and the transposition off k."""
    query, on_query = _unscaled(program, query)
    key, on_key = _unscaled(program, key)
    scores.scale *= on_query * on_key
    if scores.equation is None and _swaps_last_axes(key):
        scores.is_key_transposed = True
        key, on_key = _unscaled(program, key.args[0])
        scores.scale *= on_key
    scores.query, scores.key = query, key
    return scores


def _unscaled(program: Program, node: Any) -> tuple[Any, float]:
    factor = 1.0
    while isinstance(node, fx.Node) and node.target in (
        _ATEN.mul.Tensor,
        _ATEN.div.Tensor,
        _ATEN.mul.Scalar,
        _ATEN.div.Scalar,
    ):
        number = _number(program, node.args[1])
        if number is None or len(node.users) > 1:
            break
        factor *= number if "mul" in str(node.target) else 1.0 / number
        node = node.args[0]
    return node, factor


def _swaps_last_axes(node: Any) -> bool:
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return False
    rank = node.meta["val"].dim() if isinstance(node.meta["val"], Tensor) else 0
    if node.target is _ATEN.transpose.int:
        return {int(axis) % rank for axis in node.args[1:3]} == {rank - 2, rank - 1}  # type: ignore[arg-type]
    if node.target is _ATEN.permute.default:
        axes: Any = node.args[1]
        return [axis % rank for axis in axes] == [*range(rank - 2), rank - 1, rank - 2]
    return node.target in (_ATEN.mT.default, _ATEN.adjoint.default) if hasattr(_ATEN, "mT") else False


def _number(program: Program, value: Any) -> float | None:
    """Return a finite scalar given as a number or as a stored tensor of one element."""
    stored = program.weight(value)
    if stored is not None and stored.numel() == 1:
        value = stored.item()
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) and value != 0 else None


def _fill(program: Program, value: Any) -> float:
    stored = program.weight(value)
    number = stored.item() if stored is not None and stored.numel() == 1 else value
    if not isinstance(number, (int, float)):
        raise _RefusalError("its masked scores are replaced by something that is computed")
    if number != -math.inf and number > -VANISHING:
        raise _RefusalError(f"its masked scores are replaced by {number}, which leaves them some weight")
    return float(number)


def _node(value: Any) -> fx.Node:
    if not isinstance(value, fx.Node):
        raise _RefusalError("its mask is no tensor")
    return value


# ---- rewriting ----


def _operands(
    rewriter: Rewriter, scores: _Scores, product: fx.Node, softmax: fx.Node
) -> tuple[fx.Node, fx.Node, fx.Node, list[int] | None]:
    """Return q (..., T, D), k (..., S, D), v (..., S, E), and the permutation that the result needs, if any."""
    query, key = scores.query, scores.key
    assert query is not None
    assert key is not None
    if scores.equation is not None:
        query, key = _einsum_scores(rewriter, scores.equation, query, key, product)
    elif not scores.is_key_transposed:
        rank = key.meta["val"].dim()
        key = rewriter.call(_ATEN.transpose.int, key, rank - 2, rank - 1, like=product)
    if product.target is not _ATEN.einsum.default:
        value = _node(product.args[1])
        return query, key, value, None
    value, order = _einsum_values(rewriter, product, softmax)
    return query, key, value, order


def _einsum_scores(
    rewriter: Rewriter, equation: str, query: fx.Node, key: fx.Node, like: fx.Node
) -> tuple[fx.Node, fx.Node]:
    """bthd,bshd->bhts: bring both operands into the order batch..., row, contracted."""
    left, _, result = equation.replace(" ", "").partition("->")
    first, second = left.split(",")
    contracted = [letter for letter in first if letter in second and letter not in result]
    if len(result) < 3 or len(contracted) != 1 or len(set(result)) != len(result):
        raise _RefusalError(f"its einsum {equation!r} is no product of queries and keys")
    batch, rows, columns = result[:-2], result[-2], result[-1]
    if rows in second:
        first, second, query, key = second, first, key, query
    wanted = [(query, first, [*batch, rows, contracted[0]]), (key, second, [*batch, columns, contracted[0]])]
    for _, letters, order in wanted:
        if sorted(letters) != sorted(order):
            raise _RefusalError(f"its einsum {equation!r} broadcasts or sums over more than the head size")
    ordered = [_permuted(rewriter, node, letters, order, like) for node, letters, order in wanted]
    return ordered[0], ordered[1]


def _einsum_values(rewriter: Rewriter, product: fx.Node, softmax: fx.Node) -> tuple[fx.Node, list[int] | None]:
    (weights, values), result = _terms(product)
    operands: Any = product.args[1]
    batch, rows, keys = weights[:-2], weights[-2], weights[-1]
    features = [letter for letter in values if letter not in weights]
    if (
        len(features) != 1
        or sorted(values) != sorted([*batch, keys, features[0]])
        or sorted(result) != sorted([*batch, rows, features[0]])
    ):
        raise _RefusalError(f"its einsum {product.args[0]!r} is no product of weights and values")
    value = _permuted(rewriter, operands[1], values, [*batch, keys, features[0]], product)
    natural = [*batch, rows, features[0]]
    order = [natural.index(letter) for letter in result]
    return value, None if order == sorted(order) else order


def _permuted(rewriter: Rewriter, node: fx.Node, letters: str, wanted: list[str], like: fx.Node) -> fx.Node:
    order = [letters.index(letter) for letter in wanted]
    return node if order == sorted(order) else rewriter.call(_ATEN.permute.default, node, order, like=like)


def _mask(rewriter: Rewriter, scores: _Scores, like: fx.Node) -> fx.Node | None:
    """Join additive masks and fills into one additive mask; a single -inf fill stays boolean (True: attend)."""
    if not scores.masks and len(scores.fills) == 1 and scores.fills[0][1] == -math.inf:
        condition, _, is_kept = scores.fills[0]
        return condition if is_kept else rewriter.call(_ATEN.logical_not.default, condition, like=like)
    joined: fx.Node | None = None
    for mask, factor in scores.masks:
        term = mask if factor == 1.0 else rewriter.call(_ATEN.mul.Tensor, mask, factor, like=like)
        joined = term if joined is None else rewriter.call(_ATEN.add.Tensor, joined, term, like=like)
    for condition, fill, is_kept in scores.fills:
        kept, filled = (0.0, fill) if is_kept else (fill, 0.0)
        term = rewriter.call(_ATEN.where.Scalar, condition, kept, filled, like=like)
        dtype = like.meta["val"].dtype
        if term.meta["val"].dtype != dtype:
            term = rewriter.call(_ATEN.to.dtype, term, dtype, like=like)
        joined = term if joined is None else rewriter.call(_ATEN.add.Tensor, joined, term, like=like)
    return joined
