"""Scaled dot-product attention as ONNX Runtime's MultiHeadAttention, which never stores the (T, S) scores of long sequences.

B batch, H heads, T queries, S keys, D head size, E value size. Where that operator has no form (float64, other ranks,
broadcast batches), as MatMul, Softmax, MatMul.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
    mask = _mask_of(cx, query, key, attn_mask)
    is_square = same_size(cx.shape(query)[2], cx.shape(key)[2])
    bias = mask.bias
    if is_causal and not is_square:  # the operator's own causal mask is aligned to the last key, torch's to the first
        bias = cx.op("Where", _below_diagonal(cx, query, key), *_zero_and_lowest(cx), dtype=cx.dtype)
    y = cx.op(
        "MultiHeadAttention", _joined(cx, query, 1), *_keys_and_values(cx, key, value, heads), None, None, bias,
        domain=MICROSOFT, num_heads=heads, scale=factor, unidirectional=1 if is_causal and is_square else None,
    )  # fmt: skip
    if mask.rows is not None:
        y = cx.op("Mul", y, mask.rows)
    shape = cx.out.shape
    split = cx.reshape(y, [shape[0], shape[2], heads * shape[3]], [shape[0], shape[2], heads, shape[3]])
    y = cx.transpose(split, [0, 2, 1, 3])
    return y if mask.head_rows is None else cx.op("Mul", y, mask.head_rows)


def _has_fused_form(cx: Emitter, query: fx.Node, key: fx.Node, value: fx.Node, mask: fx.Node | None, gqa: bool) -> bool:
    shapes = [cx.shape(each) for each in (query, key, value)]
    if cx.dtype not in (torch.float32, torch.float16) or any(len(shape) != 4 for shape in shapes):
        return False
    if not all(isinstance(size, int) for shape in shapes for size in (shape[1], shape[3])):
        return False
    batches = all(same_size(shape[0], shapes[0][0]) for shape in shapes)
    return batches and same_size(shapes[1][1], shapes[2][1]) and (gqa or same_size(shapes[0][1], shapes[1][1]))


def _keys_and_values(cx: Emitter, key: fx.Node, value: fx.Node, heads: int) -> tuple[Value, Value]:
    """Return both as (B, S, H D) if that is how they were made, else as (B, H, S, D), such as a cache is stored."""
    groups = heads // cx.fixed(cx.shape(key)[1], "the number of key heads")
    pair = cx.value(key), cx.value(value)
    is_even = same_size(cx.shape(key)[3], cx.shape(value)[3])
    if groups > 1 or not is_even or any(cx.order_of(each) == [0, 2, 1, 3] for each in pair):
        return _joined(cx, key, groups), _joined(cx, value, groups)
    return pair


def _joined(cx: Emitter, x: fx.Node, groups: int) -> Value:
    """Return (B, H, T, D) as (B, T, H D), each head `groups` times: the layout before a model splits its heads."""
    batch, heads, length, size = cx.shape(x)
    assert isinstance(heads, int)
    assert isinstance(size, int)
    rows = cx.transpose(cx.value(x), [0, 2, 1, 3])
    if groups > 1:
        wide = cx.op("Expand", cx.unsqueeze(rows, 3), cx.vector([1, 1, 1, groups, 1]))
        return cx.op("Reshape", wide, cx.vector([0, 0, heads * groups * size]))
    return cx.reshape(rows, [batch, length, heads, size], [batch, length, heads * size])


@dataclass(frozen=True)
class _Mask:
    """A mask as what is added to the scores, (B or 1, H or 1, T, S), and factors that clear rows in which no key is left.

    rows: (B or 1, T or 1, 1), for all heads; head_rows: (B or 1, H, T or 1, 1), where heads differ.
    """

    bias: Value | None = None
    rows: Value | None = None
    head_rows: Value | None = None


def _mask_of(cx: Emitter, query: fx.Node, key: fx.Node, mask: fx.Node | None) -> _Mask:
    """Return the mask, made once for all layers that share it."""
    if mask is None:
        return _Mask()
    lengths = cx.shape(query)[2], cx.shape(key)[2]
    made: _Mask = cx.once(
        ("attention mask", mask, *(str(size) for size in lengths)), lambda: _make_mask(cx, query, key, mask)
    )
    return made


def _make_mask(cx: Emitter, query: fx.Node, key: fx.Node, mask: fx.Node) -> _Mask:
    lengths = cx.shape(query)[2], cx.shape(key)[2]
    shape: list[Dim] = [*([1] * (4 - cx.rank(mask))), *cx.shape(mask)]
    value = cx.unsqueeze(cx.value(mask), *range(4 - cx.rank(mask)))
    zero, lowest = _zero_and_lowest(cx)
    if value.dtype == torch.bool:
        bias = cx.op("Where", value, zero, lowest, dtype=cx.dtype)
    else:
        bias = cx.op("Max", cx.cast(value, cx.dtype), lowest)
    if not all(same_size(a, b) for a, b in zip(shape[2:], lengths, strict=True)):
        bias = cx.op("Expand", bias, cx.sizes([1, 1, cx.extent(query, 2), cx.extent(key, 2)]))
    stored = cx.weight(mask)
    if stored is not None and bool(_rows_left(stored).all()):
        return _Mask(bias)
    left = _left(cx, value)
    return _Mask(bias, rows=cx.squeeze(left, 1)) if shape[1] == 1 else _Mask(bias, head_rows=left)


def _left(cx: Emitter, value: Value) -> Value:
    """Return 1 where a query may see any key, else 0: (B or 1, H or 1, T or 1, 1). Without any key torch gives 0."""
    if value.dtype == torch.bool:
        return cx.op("ReduceMax", cx.cast(value, cx.dtype), cx.vector([3]), keepdims=1)
    best = cx.op("ReduceMax", value, cx.vector([3]), keepdims=1)
    return cx.cast(cx.op("Greater", best, cx.constant(-math.inf, value.dtype), dtype=torch.bool), cx.dtype)


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
