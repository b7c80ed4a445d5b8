"""Reductions over any dims: sums, means, extremes and their places, variances, norms, products; and cumulative sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from dsopt.backends.tir.builder import KernelBuilder
from dsopt.backends.tir.ops.activation import number
from dsopt.backends.tir.ops.broadcast import cast, larger, smaller
from dsopt.backends.tir.ops.softmax import split_at
from dsopt.backends.tir.program import Buffer
from dsopt.backends.tir.registry import Context, RefusedError, lowering, normalize_dim
from dsopt.backends.tir.tvm_adapter import Expr, constant, tirx

_Finish = Callable[[Expr], Expr]


@dataclass(frozen=True)
class _Axes:
    """The dims of a reduction, neighbours merged: the extents, and which of them are reduced."""

    extents: tuple[int, ...]
    reduced: tuple[bool, ...]

    @property
    def count(self) -> int:
        """Return how many elements fall into one result."""
        return math.prod(extent for extent, gone in zip(self.extents, self.reduced, strict=True) if gone)


def axes_of(shape: Sequence[int], dims: Sequence[int] | int | None) -> _Axes:
    """Return the merged dims of a reduction over `dims`; none are all."""
    wanted = [dims] if isinstance(dims, int) else list(dims or range(len(shape)))
    gone = {normalize_dim(dim, len(shape)) for dim in wanted}
    extents: list[int] = []
    reduced: list[bool] = []
    for dim, extent in enumerate(shape):
        if extent == 1:
            continue
        if reduced and reduced[-1] == (dim in gone):
            extents[-1] *= extent
        else:
            extents.append(extent)
            reduced.append(dim in gone)
    return _Axes(tuple(extents) or (1,), tuple(reduced) or (True,))


class ReductionNest:
    """The kernel of a reduction: a grid over the kept dims, and loops over the reduced ones."""

    def __init__(self, k: KernelBuilder, x: Buffer, axes: _Axes, result: Buffer) -> None:
        self.k, self.axes = k, axes
        self.x = k.read("x", x, axes.extents)
        kept = tuple(extent for extent, gone in zip(axes.extents, axes.reduced, strict=True) if not gone)
        self.y = k.write("y", result, kept or (1,))
        self.grid = {f"o{n}": extent for n, extent in enumerate(kept)} or {"once": 1}

    def elements(self, index: Sequence[Expr], loops: ExitStack) -> Expr:
        """Open loops over the reduced dims and return the element of x."""
        outer = iter(index)
        place = [
            loops.enter_context(self.k.loop(f"r{n}", 0, extent)) if gone else next(outer)
            for n, (extent, gone) in enumerate(zip(self.axes.extents, self.axes.reduced, strict=True))
        ]
        return self.x[tuple(place)]


def _accumulate(
    context: Context,
    x: Buffer,
    dims: Sequence[int] | int | None,
    start: float,
    step: Callable[[Expr, Expr], Expr],
    finish: _Finish,
) -> Buffer:
    axes = axes_of(x.shape, dims)
    result = context.result()
    with context.kernel() as k:
        nest = ReductionNest(k, x, axes, result)
        with k.grid(**nest.grid) as index:
            total = k.local("total", constant(start, context.dtype), context.dtype)
            with ExitStack() as loops:
                value = cast(nest.elements(index, loops), x.dtype, context.dtype)
                k.store(total, step(total[0], value))
            k.store(nest.y, finish(total[0]), *index)
    return result


def _same(value: Expr) -> Expr:
    return value


def _sum(context: Context, x: Buffer, dims: Sequence[int] | None) -> Buffer:
    return _accumulate(context, x, dims, 0, lambda total, value: total + value, _same)


def _mean(context: Context, x: Buffer, dims: Sequence[int] | None) -> Buffer:
    scale = 1.0 / axes_of(x.shape, dims).count
    return _accumulate(context, x, dims, 0, lambda total, value: total + value, lambda total: total * number(scale))


@lowering("aten.sum.default")
def _sum_all(context: Context, x: Buffer, dtype: Any) -> Buffer:
    return _sum(context, x, None)


@lowering("aten.sum.dim_IntList")
def _sum_dims(context: Context, x: Buffer, dims: list[int] | None, keepdim: bool, dtype: Any) -> Buffer:
    return _sum(context, x, dims)


@lowering("aten.mean.default")
def _mean_all(context: Context, x: Buffer, dtype: Any) -> Buffer:
    return _mean(context, x, None)


@lowering("aten.mean.dim")
def _mean_dims(context: Context, x: Buffer, dims: list[int] | None, keepdim: bool, dtype: Any) -> Buffer:
    return _mean(context, x, dims)


@lowering("aten.prod.default")
def _prod_all(context: Context, x: Buffer, dtype: Any) -> Buffer:
    return _accumulate(context, x, None, 1, lambda total, value: total * value, _same)


@lowering("aten.prod.dim_int")
def _prod_dim(context: Context, x: Buffer, dim: int, keepdim: bool, dtype: Any) -> Buffer:
    return _accumulate(context, x, dim, 1, lambda total, value: total * value, _same)


_LIMITS = {
    "float32": math.inf,
    "int64": (1 << 63) - 1,
    "int32": (1 << 31) - 1,
    "int16": 32767,
    "int8": 127,
    "uint8": 255,
    "bool": 1,
}


def _limit(dtype: str, largest: bool) -> float:
    if largest:
        return _LIMITS[dtype]
    return {"uint8": 0, "bool": 0, "float32": -math.inf}.get(dtype, -_LIMITS[dtype] - 1)


def _extreme(context: Context, x: Buffer, dims: Sequence[int] | int | None, maximum: bool) -> Buffer:
    choose = larger if maximum else smaller
    return _accumulate(context, x, dims, _limit(x.dtype, not maximum), lambda total, value: choose(value, total), _same)


def _place_of_extreme(
    context: Context, x: Buffer, dim: int | None, maximum: bool, values: Buffer | None, places: Buffer
) -> None:
    """Find the first place of the largest or smallest element along a dim, or in the flattened tensor."""
    before, size, after = (1, x.elements, 1) if dim is None else split_at(x.shape, dim)
    with context.kernel() as k:
        source = k.read("x", x, (before, size, after))
        best_values = k.write("values", values, (before, after)) if values else None
        best_places = k.write("places", places, (before, after))
        with k.grid(o=before, i=after) as (o, i):
            best = k.local("best", source[o, 0, i], x.dtype)
            place = k.local("place", 0, "int32")
            with k.loop("j", 1, size) as j:
                value = k.let("value", source[o, j, i], x.dtype)
                with k.when(value > best[0] if maximum else value < best[0]):
                    k.store(best, value)
                    k.store(place, j)
            if best_values is not None:
                k.store(best_values, best[0], o, i)
            k.store(best_places, tirx.Cast("int64", place[0]), o, i)


def _register_extremes(word: str) -> None:
    maximum = word == "max"

    @lowering(f"aten.a{word}.default")
    def over_dims(context: Context, x: Buffer, dims: list[int], keepdim: bool) -> Buffer:
        return _extreme(context, x, dims, maximum)

    @lowering(f"aten.{word}.default")
    def over_all(context: Context, x: Buffer) -> Buffer:
        return _extreme(context, x, None, maximum)

    @lowering(f"aten.{word}.dim")
    def along(context: Context, x: Buffer, dim: int, keepdim: bool) -> tuple[Buffer | None, ...]:
        values, places = context.result(0), context.result(1)
        _place_of_extreme(context, x, dim, maximum, values, places)
        return values, places

    @lowering(f"aten.arg{word}.default")
    def place(context: Context, x: Buffer, dim: int | None, keepdim: bool) -> Buffer:
        places = context.result()
        _place_of_extreme(context, x, dim, maximum, None, places)
        return places


_register_extremes("max")
_register_extremes("min")


def _truth(context: Context, x: Buffer, dims: Sequence[int] | int | None, every: bool) -> Buffer:
    step = (lambda total, value: tirx.all(total, value)) if every else (lambda total, value: tirx.any(total, value))
    return _accumulate(context, x, dims, int(every), step, _same)


@lowering("aten.all.default", "aten.all.dim", "aten.all.dims")
def _all(context: Context, x: Buffer, dims: Any = None, keepdim: bool = False) -> Buffer:
    return _truth(context, x, dims, True)


@lowering("aten.any.default", "aten.any.dim", "aten.any.dims")
def _any(context: Context, x: Buffer, dims: Any = None, keepdim: bool = False) -> Buffer:
    return _truth(context, x, dims, False)


def _variance(
    context: Context,
    x: Buffer,
    dims: Sequence[int] | None,
    correction: float,
    finish: _Finish,
    result: Buffer,
    mean_out: Buffer | None,
) -> None:
    axes = axes_of(x.shape, dims)
    divisor = max(axes.count - correction, 0.0)
    with context.kernel() as k:
        nest = ReductionNest(k, x, axes, result)
        mean_to = k.write("mean_out", mean_out, nest.y.shape) if mean_out else None
        with k.grid(**nest.grid) as index:
            total = k.local("total", 0.0, "float32")
            with ExitStack() as loops:
                value = nest.elements(index, loops)
                k.store(total, total[0] + value)
            mean = k.let("mean", total[0] * number(1.0 / axes.count), "float32")
            squares = k.local("squares", 0.0, "float32")
            with ExitStack() as loops:
                value = nest.elements(index, loops)
                centred = k.let("centred", value - mean, "float32")
                k.store(squares, squares[0] + centred * centred)
            k.store(nest.y, finish(squares[0] * number(1.0 / divisor if divisor else math.inf)), *index)
            if mean_to is not None:
                k.store(mean_to, mean, *index)


def _register_variance(word: str, finish: _Finish) -> None:
    def one(context: Context, x: Buffer, dims: Sequence[int] | None, correction: float) -> Buffer:
        result = context.result()
        _variance(context, x, dims, correction, finish, result, None)
        return result

    def pair(context: Context, x: Buffer, dims: Sequence[int] | None, correction: float) -> tuple[Buffer | None, ...]:
        result, mean = context.result(0), context.result(1)
        _variance(context, x, dims, correction, finish, result, mean)
        return result, mean

    for suffix, function in (("", one), ("_mean", pair)):
        lowering(f"aten.{word}{suffix}.default")(
            lambda context, x, unbiased, function=function: function(context, x, None, float(unbiased))
        )
        lowering(f"aten.{word}{suffix}.dim")(
            lambda context, x, dims, unbiased, keepdim, function=function: function(context, x, dims, float(unbiased))
        )
        lowering(f"aten.{word}{suffix}.correction")(
            lambda context, x, dims, correction, keepdim, function=function: function(
                context, x, dims, 1.0 if correction is None else float(correction)
            )
        )


_register_variance("var", _same)
_register_variance("std", tirx.sqrt)


@lowering("aten.linalg_vector_norm.default")
def _vector_norm(
    context: Context, x: Buffer, order: float, dims: list[int] | None, keepdim: bool, dtype: Any
) -> Buffer:
    return _norm(context, x, order, dims)


@lowering("aten.norm.ScalarOpt_dim", "aten.norm.Scalar")
def _old_norm(
    context: Context, x: Buffer, order: float | None, dims: list[int] | None = None, keepdim: bool = False
) -> Buffer:
    return _norm(context, x, 2.0 if order is None else order, dims)


def _norm(context: Context, x: Buffer, order: float, dims: Sequence[int] | None) -> Buffer:
    def add(term: Callable[[Expr], Expr], finish: _Finish) -> Buffer:
        return _accumulate(context, x, dims, 0, lambda total, value: total + term(value), finish)

    if order == 2:
        return add(lambda v: v * v, tirx.sqrt)
    if order == 1:
        return add(tirx.abs, _same)
    if order == math.inf:
        return _accumulate(context, x, dims, 0, lambda total, value: tirx.max(tirx.abs(value), total), _same)
    if order == -math.inf:
        return _accumulate(context, x, dims, math.inf, lambda total, value: tirx.min(tirx.abs(value), total), _same)
    if order <= 0:
        raise RefusedError(f"a norm of order {order}", "use an order above 0, or infinity")
    return add(
        lambda v: tirx.call_pure_extern("float32", "powf", tirx.abs(v), number(order)),
        lambda total: tirx.call_pure_extern("float32", "powf", total, number(1.0 / order)),
    )


@lowering("aten.logsumexp.default")
def _logsumexp(context: Context, x: Buffer, dims: list[int], keepdim: bool) -> Buffer:
    axes = axes_of(x.shape, dims)
    result = context.result()
    with context.kernel() as k:
        nest = ReductionNest(k, x, axes, result)
        with k.grid(**nest.grid) as index:
            largest = k.local("largest", -math.inf, "float32")
            with ExitStack() as loops:
                value = nest.elements(index, loops)
                k.store(largest, tirx.max(value, largest[0]))
            total = k.local("total", 0.0, "float32")
            with ExitStack() as loops:
                value = nest.elements(index, loops)
                k.store(total, total[0] + tirx.exp(value - largest[0]))
            k.store(nest.y, largest[0] + tirx.log(total[0]), *index)
    return result


@lowering("aten.cumsum.default")
def _cumsum(context: Context, x: Buffer, dim: int, dtype: Any) -> Buffer:
    return _scan(context, x, dim, 0, lambda total, value: total + value)


@lowering("aten.cumprod.default")
def _cumprod(context: Context, x: Buffer, dim: int, dtype: Any) -> Buffer:
    return _scan(context, x, dim, 1, lambda total, value: total * value)


def _scan(context: Context, x: Buffer, dim: int, start: float, step: Callable[[Expr, Expr], Expr]) -> Buffer:
    before, size, after = split_at(x.shape, dim)
    result = context.result()
    with context.kernel() as k:
        source, y = k.read("x", x, (before, size, after)), k.write("y", result, (before, size, after))
        with k.grid(o=before, i=after) as (o, i):
            total = k.local("total", constant(start, context.dtype), context.dtype)
            with k.loop("j", 0, size) as j:
                k.store(total, step(total[0], cast(source[o, j, i], x.dtype, context.dtype)))
                k.store(y, total[0], o, j, i)
    return result


@lowering("aten.cosine_similarity.default")
def _cosine(context: Context, a: Buffer, b: Buffer, dim: int, epsilon: float) -> Buffer:
    """Dot product over the product of the lengths, each length at least epsilon."""
    if a.shape != b.shape:
        raise RefusedError(f"cosine similarity of shapes {a.shape} and {b.shape}", "expand both to one shape first")
    before, size, after = split_at(a.shape, dim)
    result = context.result()
    with context.kernel(multiply_adds=3 * a.elements) as k:
        x, z = k.read("a", a, (before, size, after)), k.read("b", b, (before, size, after))
        y = k.write("y", result, (before, after))
        with k.grid(o=before, i=after) as (o, i):
            product, left, right = (k.local(name, 0.0, "float32") for name in ("product", "left", "right"))
            with k.loop("j", 0, size) as j:
                k.store(product, product[0] + x[o, j, i] * z[o, j, i])
                k.store(left, left[0] + x[o, j, i] * x[o, j, i])
                k.store(right, right[0] + z[o, j, i] * z[o, j, i])
            lengths = [tirx.max(tirx.sqrt(each[0]), number(epsilon)) for each in (left, right)]
            k.store(y, product[0] / (lengths[0] * lengths[1]), o, i)
    return result
