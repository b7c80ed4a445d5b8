"""Nearest and linear resizing in one to three spatial dims, as torch computes the source places."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from dsopt.backends.tir.builder import KernelBuilder
from dsopt.backends.tir.ops.activation import number
from dsopt.backends.tir.program import Buffer
from dsopt.backends.tir.registry import Context, lowering
from dsopt.backends.tir.tvm_adapter import Expr, element, tirx

_DIMS = ("d", "h", "w")


def _nearest(context: Context, x: Buffer, scales: Sequence[float | None], exact: bool) -> Buffer:
    rank = len(scales)
    sizes, out_sizes = x.shape[-rank:], context.shape[-rank:]
    planes = math.prod(x.shape[:-rank])
    names = _DIMS[3 - rank :]
    result = context.result()
    with context.kernel() as k:
        source, y = k.read("x", x, (planes, *sizes)), k.write("y", result, (planes, *out_sizes))
        with k.grid(c=planes, **{f"o{n}": size for n, size in zip(names, out_sizes, strict=True)}) as (c, *out):
            places = [
                k.let(f"{n}_place", _nearest_place(o, size, out_size, scale, exact))
                for n, o, size, out_size, scale in zip(names, out, sizes, out_sizes, scales, strict=True)
            ]
            k.store(y, element(source, c, *places), c, *out)
    return result


def _nearest_place(o: Expr, size: int, out_size: int, scale: float | None, exact: bool) -> Expr:
    if out_size % size == 0 and scale in (None, out_size // size):
        return tirx.truncdiv(o, out_size // size)
    step = size / out_size if scale is None else 1.0 / scale
    place = tirx.Cast("float32", o)
    place = (place + number(0.5)) * number(step) if exact else place * number(step)
    return tirx.min(tirx.Cast("int32", place), size - 1)


def _linear_place(
    k: KernelBuilder, name: str, o: Expr, size: int, out_size: int, scale: float | None, align: bool
) -> tuple[Expr, Expr, Expr]:
    """Name the two source places and the weight of the second."""
    if align:
        step = (size - 1) / (out_size - 1) if out_size > 1 else 0.0
        real = tirx.Cast("float32", o) * number(step)
    else:
        step = size / out_size if scale is None else 1.0 / scale
        real = tirx.max((tirx.Cast("float32", o) + number(0.5)) * number(step) - number(0.5), number(0.0))
    real = k.let(f"{name}_real", real, "float32")
    low = k.let(f"{name}_low", tirx.min(tirx.Cast("int32", real), size - 1))
    high = k.let(f"{name}_high", tirx.min(low + 1, size - 1))
    weight = k.let(
        f"{name}_weight", tirx.min(tirx.max(real - tirx.Cast("float32", low), number(0.0)), number(1.0)), "float32"
    )
    return low, high, weight


def _linear(context: Context, x: Buffer, scales: Sequence[float | None], align: bool) -> Buffer:
    rank = len(scales)
    sizes, out_sizes = x.shape[-rank:], context.shape[-rank:]
    planes = math.prod(x.shape[:-rank])
    names = _DIMS[3 - rank :]
    result = context.result()
    with context.kernel(multiply_adds=result.elements << rank) as k:
        source, y = k.read("x", x, (planes, *sizes)), k.write("y", result, (planes, *out_sizes))
        with k.grid(c=planes, **{f"o{n}": size for n, size in zip(names, out_sizes, strict=True)}) as (c, *out):
            places = [
                _linear_place(k, n, o, size, out_size, scale, align)
                for n, o, size, out_size, scale in zip(names, out, sizes, out_sizes, scales, strict=True)
            ]
            total: Expr = None
            for corner in itertools.product((0, 1), repeat=rank):
                weight: Expr = None
                for side, (_, _, high_weight) in zip(corner, places, strict=True):
                    factor = high_weight if side else number(1.0) - high_weight
                    weight = factor if weight is None else weight * factor
                term = weight * element(source, c, *(place[side] for side, place in zip(corner, places, strict=True)))
                total = term if total is None else total + term
            k.store(y, total, c, *out)
    return result


def _register(word: str, rank: int, exact: bool) -> None:
    @lowering(f"aten.{word}{rank}d.vec")
    def with_factors(context: Context, x: Buffer, size: list[int] | None, factors: list[float] | None) -> Buffer:
        return _nearest(context, x, factors or [None] * rank, exact)

    @lowering(f"aten.{word}{rank}d.default")
    def with_size(context: Context, x: Buffer, size: list[int], *scales: float | None) -> Buffer:
        return _nearest(context, x, scales, exact)


def _register_linear(word: str, rank: int) -> None:
    @lowering(f"aten.{word}.vec")
    def with_factors(
        context: Context, x: Buffer, size: list[int] | None, align: bool, factors: list[float] | None
    ) -> Buffer:
        return _linear(context, x, factors or [None] * rank, align)

    @lowering(f"aten.{word}.default")
    def with_size(context: Context, x: Buffer, size: list[int], align: bool, *scales: float | None) -> Buffer:
        return _linear(context, x, scales, align)


for _rank in (1, 2, 3):
    _register("upsample_nearest", _rank, False)
    _register("_upsample_nearest_exact", _rank, True)
_register_linear("upsample_linear1d", 1)
_register_linear("upsample_bilinear2d", 2)
_register_linear("upsample_trilinear3d", 3)
