"""Scaled dot-product attention in one pass over the keys, without a row of scores (Milakov and Gimelshein 2018, algorithm 3).

Each step of the grid owns one query. The output row holds the weighted sum of values for the largest score so far; a larger
score shrinks the row and its total first. A key that is masked out is skipped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack

from dsopt.backends.tir.ops.activation import number
from dsopt.backends.tir.program import Buffer
from dsopt.backends.tir.registry import Context, RefusedError, lowering
from dsopt.backends.tir.tvm_adapter import Expr, element, tirx

_LOWEST = -3.4028234663852886e38


def _broadcast(index: Sequence[Expr], shape: Sequence[int]) -> list[Expr]:
    """Index an operand that lacks leading dims or has dims of size 1."""
    used = list(index)[len(index) - len(shape) :]
    return [at if size > 1 else 0 for at, size in zip(used, shape, strict=True)]


@lowering("aten.scaled_dot_product_attention.default")
def _attention(
    context: Context, q: Buffer, key: Buffer, value: Buffer, mask: Buffer | None, dropout: float, causal: bool,
    scale: float | None = None, grouped: bool = False,
) -> Buffer:  # fmt: skip
    if dropout:
        raise RefusedError(f"attention with dropout {dropout}", "export the model in eval mode")
    if q.dtype != "float32":
        raise RefusedError(f"attention of {q.dtype}", "convert q, k and v to float32")
    *batch, T, D = (*context.shape[:-1], q.shape[-1])
    S, D_v = key.shape[-2], value.shape[-1]
    heads = q.shape[-3] // key.shape[-3] if grouped else 1
    factor = 1.0 / math.sqrt(D) if scale is None else scale
    result = context.result()
    work = math.prod(batch) * T * S * (D + D_v)
    with context.kernel(multiply_adds=work) as k:
        Q, K, V = k.read("q", q), k.read("key", key), k.read("value", value)
        M = k.read("mask", mask) if mask else None
        y = k.write("y", result)
        with k.grid(**{f"b{n}": extent for n, extent in enumerate(batch)}, t=T) as (*b, t):
            kv = [*b[:-1], tirx.truncdiv(b[-1], heads)] if heads > 1 else b
            q_row, k_rows, v_rows = (_broadcast(at, s.shape[:-2]) for at, s in ((b, q), (kv, key), (kv, value)))
            largest = k.local("largest", -math.inf, "float32")
            total = k.local("total", 0.0, "float32")
            with k.loop("d", 0, D_v) as d:
                k.store(y, number(0.0), *b, t, d)
            with ExitStack() as keys:
                j = keys.enter_context(k.loop("s", 0, tirx.min(t + 1, S) if causal else S))
                score = k.local("score", 0.0, "float32")
                m = M[tuple(_broadcast([*b, t, j], mask.shape))] if mask is not None and M is not None else None
                if m is not None and mask is not None and mask.dtype == "bool":
                    keys.enter_context(k.when(m))
                with k.loop("d", 0, D) as d:
                    k.store(score, score[0] + element(Q, *q_row, t, d) * element(K, *k_rows, j, d))
                scaled = score[0] * number(factor)
                k.store(score, scaled + m if m is not None and mask is not None and mask.dtype != "bool" else scaled)
                if m is not None and mask is not None and mask.dtype != "bool":
                    keys.enter_context(k.when(score[0] >= number(_LOWEST)))
                with k.when(score[0] > largest[0]):
                    shrink = k.let("shrink", tirx.exp(largest[0] - score[0]), "float32")
                    k.store(total, total[0] * shrink)
                    with k.loop("d", 0, D_v) as d:
                        k.store(y, element(y, *b, t, d) * shrink, *b, t, d)
                    k.store(largest, score[0])
                weight = k.let("weight", tirx.exp(score[0] - largest[0]), "float32")
                k.store(total, total[0] + weight)
                with k.loop("d", 0, D_v) as d:
                    k.store(y, element(y, *b, t, d) + weight * element(V, *v_rows, j, d), *b, t, d)
            norm = k.let("norm", tirx.Select(total[0] > number(0.0), number(1.0) / total[0], number(0.0)), "float32")
            with k.loop("d", 0, D_v) as d:
                k.store(y, element(y, *b, t, d) * norm, *b, t, d)
    return result
