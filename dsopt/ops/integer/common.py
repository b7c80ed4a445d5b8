"""What the integer operators share: NumPy in and out, packed weights, the dtypes of results."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dsopt.ops.library import register_opaque
from dsopt.ops.rounding import ACCUMULATOR_LIMIT, WIDE_LIMIT, requantize

Array = npt.NDArray[Any]

TORCH_DTYPES = {8: torch.int8, 16: torch.int16}
_NUMPY_DTYPES = {8: np.int8, 16: np.int16}


def integer_operator(schema: str, reference: Callable[..., Any], shape_rule: Callable[..., Any]) -> None:
    """Register an operator by a reference over NumPy arrays, which returns one array or a tuple of them."""

    def run(*arguments: Any) -> Any:
        given = [each.detach().cpu().numpy() if isinstance(each, Tensor) else each for each in arguments]
        results = reference(*given)
        as_tensors = [torch.from_numpy(np.asarray(each, order="C")) for each in _listed(results)]
        return tuple(as_tensors) if isinstance(results, tuple) else as_tensors[0]

    register_opaque(schema, run, shape_rule)


def _listed(results: Array | tuple[Array, ...]) -> Sequence[Array]:
    return results if isinstance(results, tuple) else (results,)


def narrow(values: Array, bits: int) -> Array:
    """Return int64 values that are in range as int8 or int16."""
    result: Array = values.astype(_NUMPY_DTYPES[bits])
    return result


def finish(
    acc: Array, multiplier: int | Array, shift: int | Array, y_zero: int, low: int, high: int, bits: int, wide: bool
) -> Array:
    """Requantise exact sums. Raises AssertionError for one beyond what the kernel was proved to reach."""
    limit = WIDE_LIMIT if wide else ACCUMULATOR_LIMIT
    assert acc.size == 0 or int(np.abs(acc).max()) < limit, "a sum is larger than lower-integer proved"
    return narrow(requantize(acc, multiplier, shift, y_zero, low, high), bits)


# ---- weights of 4 bits ----


def pack_nibbles(values: Array) -> Array:
    """Pack int8 values of -8..7, (rows, ...), two to a byte: uint8 (rows, ceil(rest / 2)), the first value in the low half."""
    rows = values.reshape(values.shape[0], -1).astype(np.int8)
    if rows.shape[1] % 2:
        rows = np.pad(rows, ((0, 0), (0, 1)))
    unsigned = rows.view(np.uint8) & 15
    packed: Array = unsigned[:, 0::2] | (unsigned[:, 1::2] << 4)
    return packed


def unpack_nibbles(packed: Array, shape: Sequence[int]) -> Array:
    """Undo `pack_nibbles`."""
    halves = np.stack([packed & 15, packed >> 4], -1).reshape(packed.shape[0], -1).astype(np.int8)
    signed = np.where(halves > 7, halves - 16, halves)[:, : math.prod(shape[1:])]
    return signed.reshape(tuple(shape))


def stored_weight(weight: Array, shape: Sequence[int], bits: int, factors: Array | None, group: int) -> Array:
    """Return a weight as int64 (N, K, ...), each value times the factor of its group."""
    values = (unpack_nibbles(weight, shape) if bits == 4 else weight.reshape(tuple(shape))).astype(np.int64)
    if factors is None:
        return values
    spread = np.repeat(factors.astype(np.int64), group, 1)[:, : shape[1]]
    result: Array = values * spread.reshape(*spread.shape, *[1] * (len(shape) - 2))
    return result
