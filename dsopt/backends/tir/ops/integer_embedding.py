"""q_embedding: rows of a table of integers, on the grid of the result."""

from __future__ import annotations

import numpy as np

from dsopt.backends.tir.ops.indexing import place
from dsopt.backends.tir.ops.integer_values import cast, clamped, need_integers, sum_dtype
from dsopt.backends.tir.ops.integer_weights import StoredWeight, WeightReader
from dsopt.backends.tir.ops.requantize import shift_right
from dsopt.backends.tir.program import Buffer
from dsopt.backends.tir.registry import Context, lowering


@lowering("dsopt.q_embedding.default")
def _embedding(
    context: Context, ids: Buffer, weight: Buffer, row_factors: Buffer | None, factors: Buffer | None, group: int,
    weight_shape: list[int], weight_bits: int, shift: int, y_zero: int, low: int, high: int, bits: int,
) -> Buffer:  # fmt: skip
    stored = StoredWeight.of(weight, weight_shape, weight_bits, factors, group)
    need_integers(row_factors)
    (V, D), count = weight_shape, ids.elements
    dtype = "int32" if row_factors is None else _dtype(context, row_factors, stored, shift)
    result = context.result()
    with context.kernel() as k:
        index, table = k.read("ids", ids, (count,)), WeightReader(k, stored)
        scale = k.read("row_factors", row_factors) if row_factors else None
        y = k.write("y", result, (count, D))
        with k.grid(j=count) as (j,):
            row = k.let("row", place(index[j], ids.dtype, V, False))
            factor = None if scale is None else k.let("factor", cast(scale[row], dtype), dtype)
            with k.loop("i", 0, D) as i:
                value = table.scaled(row, i)
                if factor is not None:
                    value = shift_right(cast(value, dtype) * factor, shift)
                k.store(y, clamped(value, y_zero, low, high, context.dtype), j, i)
    return result


def _dtype(context: Context, row_factors: Buffer, weight: StoredWeight, shift: int) -> str:
    """Return the type that holds the products with the factors of the rows."""
    values = context.constant(row_factors)
    factor = (1 << 31) if values is None else int(np.abs(values.astype(np.int64)).max())
    return sum_dtype(weight.reach * (255 if weight.factors else 1) * factor + (1 << max(shift, 1)))
