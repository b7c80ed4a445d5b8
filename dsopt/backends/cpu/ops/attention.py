"""Scaled dot-product attention as ONNX Runtime's MultiHeadAttention, which never stores the (T, S) scores of long sequences.

B batch, H heads, T queries, S keys, D head size, E value size. Where that operator has no form (float64, other ranks,
broadcast batches), as MatMul, Softmax, MatMul.
"""

from __future__ import annotations

import math

import torch
from torch import fx

from dsopt.backends.cpu.builder import MICROSOFT, Value
from dsopt.backends.cpu.emitter import Dim, Emitter
from dsopt.backends.cpu.registry import converter
from dsopt.ir.torch_private import same_size


@converter("aten.scaled_dot_product_attention.default")
def convert_attention(
    cx: Emitter,
    query: fx.Node,
    key: fx.Node,
    value: fx.Node,
    attn_mask: fx.Node | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    """Write softmax(query key^T scale + mask) value: (B, H, T, D), (B, H, S, D), (B, H, S, E) -> (B, H, T, E)."""
    head = cx.shape(query)[-1]
    factor = 1 / math.sqrt(cx.fixed(head, "the head size")) if scale is None else float(scale)
    if not _has_fused_form(cx, query, key, value, attn_mask, enable_gqa):
        return _composed(cx, query, key, value, attn_mask, is_causal, factor, enable_gqa)
    heads = cx.fixed(cx.shape(query)[1], "the number of heads")
    groups = heads // cx.fixed(cx.shape(key)[1], "the number of key heads")
    mask = _Mask(cx, query, key, attn_mask)
    is_square = same_size(cx.shape(query)[2], cx.shape(key)[2])
    if is_causal and not is_square:  # the operator's own causal mask is aligned to the last key, torch's to the first
        mask.bias = cx.op("Where", _below_diagonal(cx, query, key), *_zero_and_lowest(cx), dtype=cx.dtype)
    inputs = _joined(cx, query, 1), _joined(cx, key, groups), _joined(cx, value, groups)
    y = cx.op(
        "MultiHeadAttention", *inputs, None, None, mask.bias, domain=MICROSOFT, num_heads=heads, scale=factor,
        unidirectional=1 if is_causal and is_square else None,
    )  # fmt: skip
    shape = cx.out.shape
    split = cx.reshape(y, [shape[0], shape[2], heads * shape[3]], [shape[0], shape[2], heads, shape[3]])
    return mask.cleared(cx.transpose(split, [0, 2, 1, 3]))


def _has_fused_form(cx: Emitter, query: fx.Node, key: fx.Node, value: fx.Node, mask: fx.Node | None, gqa: bool) -> bool:
    shapes = [cx.shape(each) for each in (query, key, value)]
    if cx.dtype not in (torch.float32, torch.float16) or any(len(shape) != 4 for shape in shapes):
        return False
    if not all(isinstance(size, int) for shape in shapes for size in (shape[1], shape[3])):
        return False
    batches = all(same_size(shape[0], shapes[0][0]) for shape in shapes)
    return batches and same_size(shapes[1][1], shapes[2][1]) and (gqa or same_size(shapes[0][1], shapes[1][1]))


def _joined(cx: Emitter, x: fx.Node, groups: int) -> Value:
    """Return (B, H, T, D) as (B, T, H D), each head `groups` times: the layout before a model splits its heads."""
    batch, heads, length, size = cx.shape(x)
    data = cx.value(x)
    assert isinstance(heads, int)
    assert isinstance(size, int)
    rows = cx.transpose(data, [0, 2, 1, 3])
    if groups > 1:
        wide = cx.op("Expand", cx.unsqueeze(rows, 3), cx.vector([1, 1, 1, groups, 1]))
        return cx.op("Reshape", wide, cx.vector([0, 0, heads * groups * size]))
    return cx.reshape(rows, [batch, length, heads, size], [batch, length, heads * size])


class _Mask:
    """A mask as what is added to the scores, (B or 1, H or 1, T, S), and the rows in which nothing is left."""

    def __init__(self, cx: Emitter, query: fx.Node, key: fx.Node, mask: fx.Node | None) -> None:
        self.cx, self.bias, self.any_left = cx, None, None
        if mask is None:
            return
        stored = cx.weight(mask)
        rank = cx.rank(mask)
        value = cx.unsqueeze(cx.value(mask), *range(4 - rank))
        shape: list[Dim] = [*([1] * (4 - rank)), *cx.shape(mask)]
        is_bool = value.dtype == torch.bool
        if stored is None or bool(_rows_left(stored).logical_not().any()):
            self.any_left = self._left(value, is_bool)
        self.bias = self._additive(value, is_bool)
        lengths = cx.shape(query)[2], cx.shape(key)[2]
        if not all(same_size(a, b) for a, b in zip(shape[2:], lengths, strict=True)):
            self.bias = cx.op("Expand", self.bias, cx.sizes([1, 1, cx.extent(query, 2), cx.extent(key, 2)]))

    def _additive(self, value: Value, is_bool: bool) -> Value:
        zero, lowest = _zero_and_lowest(self.cx)
        if is_bool:
            return self.cx.op("Where", value, zero, lowest, dtype=self.cx.dtype)
        return self.cx.op("Max", self.cx.cast(value, self.cx.dtype), lowest)

    def _left(self, value: Value, is_bool: bool) -> Value:
        """Return whether each query may see any key: (B or 1, H or 1, T or 1, 1) bool."""
        cx = self.cx
        if is_bool:
            seen = cx.cast(value, torch.int32)
            return cx.cast(cx.op("ReduceMax", seen, cx.vector([3]), keepdims=1), torch.bool)
        best = cx.op("ReduceMax", value, cx.vector([3]), keepdims=1)
        return cx.op("Greater", best, cx.constant(-math.inf, value.dtype), dtype=torch.bool)

    def cleared(self, y: Value) -> Value:
        """Return the result with 0 where a query sees no key, as torch has it."""
        if self.any_left is None:
            return y
        return self.cx.op("Where", self.any_left, y, self.cx.constant(0, y.dtype), dtype=y.dtype)


def _rows_left(mask: torch.Tensor) -> torch.Tensor:
    return mask.any(-1) if mask.dtype == torch.bool else (mask > -math.inf).any(-1)


def _composed(
    cx: Emitter,
    query: fx.Node,
    key: fx.Node,
    value: fx.Node,
    attn_mask: fx.Node | None,
    is_causal: bool,
    factor: float,
    enable_gqa: bool,
) -> Value:
    dtype = cx.dtype
    q = cx.op("Mul", cx.value(query), cx.constant(factor, dtype))
    k, v = (_repeated(cx, each, query, enable_gqa) for each in (key, value))
    rank = cx.rank(key)
    scores = cx.op("MatMul", q, cx.transpose(k, [*range(rank - 2), rank - 1, rank - 2]))
    if attn_mask is not None:
        scores = _masked(cx, scores, attn_mask)
    if is_causal:
        scores = _masked_above_diagonal(cx, scores, query, key)
    y = cx.op("MatMul", cx.op("Softmax", scores, axis=-1), v)
    if attn_mask is None:
        return y
    empty = cx.op("IsNaN", y, dtype=torch.bool)  # a row of minus infinities
    return cx.op("Where", empty, cx.constant(0, dtype), y, dtype=dtype)


def _repeated(cx: Emitter, x: fx.Node, query: fx.Node, enable_gqa: bool) -> Value:
    """Return keys or values with each head repeated for its group of queries."""
    if not enable_gqa:
        return cx.value(x)
    rank = cx.rank(x)
    what = "the number of heads"
    heads, wanted = cx.fixed(cx.shape(x)[-3], what), cx.fixed(cx.shape(query)[-3], what)
    order = torch.arange(heads).repeat_interleave(wanted // heads)
    return cx.op("Gather", cx.value(x), cx.constant(order, torch.int64), axis=rank - 3)


def _masked(cx: Emitter, scores: Value, mask: fx.Node) -> Value:
    value = cx.value(mask)
    if value.dtype != torch.bool:
        return cx.op("Add", scores, cx.cast(value, scores.dtype))
    return cx.op("Where", value, scores, cx.constant(-math.inf, scores.dtype), dtype=scores.dtype)


def _masked_above_diagonal(cx: Emitter, scores: Value, query: fx.Node, key: fx.Node) -> Value:
    hidden = cx.constant(-math.inf, scores.dtype)
    return cx.op("Where", _below_diagonal(cx, query, key), scores, hidden, dtype=scores.dtype)


def _below_diagonal(cx: Emitter, query: fx.Node, key: fx.Node) -> Value:
    """Return which keys each query sees: query i sees keys 0..i, counted from the first key, as torch does where T != S."""
    sizes = cx.sizes([cx.extent(query, cx.rank(query) - 2), cx.extent(key, cx.rank(key) - 2)])
    ones = cx.op("ConstantOfShape", sizes, dtype=torch.float32, value=torch.ones(1))
    seen = cx.cast(cx.op("Trilu", ones, upper=0), torch.bool)
    return cx.unsqueeze(seen, *range(cx.rank(query) - 2))


def _zero_and_lowest(cx: Emitter) -> tuple[Value, Value]:
    """Return what is added to a score that is seen and to one that is masked: its exponential is 0, and no row becomes NaN."""
    return cx.constant(0, cx.dtype), cx.constant(torch.finfo(cx.dtype).min, cx.dtype)


@converter("aten._scaled_dot_product_flash_attention_for_cpu.default")
def convert_flash(
    cx: Emitter,
    query: fx.Node,
    key: fx.Node,
    value: fx.Node,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: fx.Node | None = None,
    scale: float | None = None,
) -> tuple[Value, None]:
    """Write the form that torch decomposes attention to."""
    recorded = cx.node.meta["val"]
    cx.node.meta["val"] = recorded[0]
    try:
        return convert_attention(cx, query, key, value, attn_mask, dropout_p, is_causal, scale=scale), None
    finally:
        cx.node.meta["val"] = recorded
