"""q_embedding: rows of a table of integers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from dsopt.ops.integer.common import TORCH_DTYPES, Array, integer_operator, narrow, stored_weight
from dsopt.ops.rounding import shift_right


def q_embedding(
    ids: Array, weight: Array, row_factors: Array | None, factors: Array | None, group: int, weight_shape: Sequence[int],
    weight_bits: int, shift: int, y_zero: int, low: int, high: int, bits: int,
) -> Array:  # fmt: skip
    """Return rows `ids` of a (V, D) table of whole numbers, each times the factor of its row, over 2^shift, rounded once.

    row_factors: (V,) int32; None where table and result are on one grid.
    """
    rows = stored_weight(weight, weight_shape, weight_bits, factors, group)[ids]
    if row_factors is not None:
        rows = shift_right(rows * row_factors.astype(np.int64)[ids][..., None], shift)
    return narrow(np.clip(rows + y_zero, low, high), bits)


def _shape(ids: Tensor, *rest: object) -> Tensor:
    shape, bits = rest[4], rest[10]
    return ids.new_empty((*ids.shape, shape[1]), dtype=TORCH_DTYPES[bits])  # type: ignore[index]


integer_operator(
    "q_embedding(Tensor ids, Tensor weight, Tensor? row_factors, Tensor? factors, int group, int[] weight_shape, int weight_bits, "
    "int shift, int y_zero, int low, int high, int bits) -> Tensor",
    q_embedding,
    _shape,
)
