"""Softmax and log-softmax over one dim: maximum, sum of exponentials, then the result, row by row."""

from __future__ import annotations

import math
from typing import Any

from dsopt.backends.tir.ops.activation import number
from dsopt.backends.tir.program import Buffer
from dsopt.backends.tir.registry import Context, RefusedError, lowering, normalize_dim
from dsopt.backends.tir.tvm_adapter import tirx


def split_at(shape: tuple[int, ...], dim: int) -> tuple[int, int, int]:
    """Return (before, size, after) of a dim counted from either end."""
    shape = shape or (1,)
    dim = normalize_dim(dim, len(shape))
    return math.prod(shape[:dim]), shape[dim], math.prod(shape[dim + 1 :])


def _softmax(context: Context, x: Buffer, dim: int, logarithm: bool) -> Buffer:
    if x.dtype != "float32":
        raise RefusedError(f"a softmax of {x.dtype}", "convert the input to float32")
    before, size, after = split_at(x.shape, dim)
    result = context.result()
    with context.kernel() as k:
        source, y = k.read("x", x, (before, size, after)), k.write("y", result, (before, size, after))
        with k.grid(o=before, i=after) as (o, i):
            largest = k.local("largest", source[o, 0, i], "float32")
            with k.loop("j", 1, size) as j:
                k.store(largest, tirx.max(largest[0], source[o, j, i]))
            total = k.local("total", 0.0, "float32")
            if logarithm:
                with k.loop("j", 0, size) as j:
                    k.store(total, total[0] + tirx.exp(source[o, j, i] - largest[0]))
                shift = k.let("shift", largest[0] + tirx.log(total[0]), "float32")
                with k.loop("j", 0, size) as j:
                    k.store(y, source[o, j, i] - shift, o, j, i)
                return result
            with k.loop("j", 0, size) as j:
                power = k.let("power", tirx.exp(source[o, j, i] - largest[0]), "float32")
                k.store(y, power, o, j, i)
                k.store(total, total[0] + power)
            scale = k.let("scale", number(1.0) / total[0], "float32")
            with k.loop("j", 0, size) as j:
                k.store(y, y[o, j, i] * scale, o, j, i)
    return result


@lowering("aten.softmax.int", "aten._softmax.default", "aten._safe_softmax.default")
def _softmax_int(context: Context, x: Buffer, dim: int, *options: Any) -> Buffer:
    return _softmax(context, x, dim, False)


@lowering("aten.log_softmax.int", "aten._log_softmax.default")
def _log_softmax_int(context: Context, x: Buffer, dim: int, *options: Any) -> Buffer:
    return _softmax(context, x, dim, True)
