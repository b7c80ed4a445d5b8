"""Reading and writing at computed places: embedding, gather, index, scatter, and the updates of KV caches.

A negative index counts from the end where torch lets it. An index out of range, an error in torch, is moved to the nearest
element: generated code must not touch memory that is not its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dsopt.backends.tir.builder import KernelBuilder
from dsopt.backends.tir.ops.broadcast import cast
from dsopt.backends.tir.ops.softmax import split_at
from dsopt.backends.tir.program import Buffer
from dsopt.backends.tir.registry import Context, Layout, RefusedError, lowering, normalize_dim
from dsopt.backends.tir.tvm_adapter import Expr, TirBuffer, constant, tirx


def place(value: Expr, dtype: str, size: int, wrap: bool) -> Expr:
    """Return an index as int32 inside 0..size-1."""
    index = value if dtype == "int32" else tirx.Cast("int32", value)
    if wrap:
        index = tirx.Select(index < 0, index + size, index)
    return tirx.max(0, tirx.min(index, size - 1))


# ---- reads ----


@lowering("aten.embedding.default")
def _embedding(context: Context, table: Buffer, index: Buffer, *options: Any) -> Buffer:
    return _take(context, table, 0, index, False)


@lowering("aten.index_select.default")
def _index_select(context: Context, x: Buffer, dim: int, index: Buffer) -> Buffer:
    return _take(context, x, dim, index, False)


def _take(context: Context, x: Buffer, dim: int, index: Buffer, wrap: bool) -> Buffer:
    before, size, after = split_at(x.shape, dim)
    result = context.result()
    count = index.elements
    with context.kernel() as k:
        source, places = k.read("x", x, (before, size, after)), k.read("index", index, (count,))
        y = k.write("y", result, (before, count, after))
        with k.grid(o=before, j=count) as (o, j):
            at = k.let("at", place(places[j], index.dtype, size, wrap))
            with k.loop("i", 0, after) as i:
                k.store(y, source[o, at, i], o, j, i)
    return result


@lowering("aten.gather.default", "aten.take_along_dim.default")
def _gather(context: Context, x: Buffer, first: Any, second: Any, *options: Any) -> Buffer:
    dim, index = (first, second) if isinstance(second, Buffer) else (second, first)
    dim = normalize_dim(dim, len(x.shape))
    if any(index.shape[n] != size for n, size in enumerate(x.shape) if n != dim) and "take" in context.operator:
        raise RefusedError("take_along_dim with broadcasting", "expand the index first")
    result = context.result()
    with context.kernel() as k:
        source, places, y = k.read("x", x), k.read("index", index), k.write("y", result)
        with k.grid(**{f"i{n}": size for n, size in enumerate(index.shape or (1,))}) as at:
            found = place(places[at], index.dtype, (x.shape or (1,))[dim], False)
            k.store(y, source[tuple(found if n == dim else i for n, i in enumerate(at))], *at)
    return result


@dataclass(frozen=True)
class _Advanced:
    """x[i0, :, i1, ...]: the dims that are indexed, the shape the indices broadcast to, and where it stands in the result."""

    x_shape: tuple[int, ...]
    indices: tuple[Buffer | None, ...]

    @property
    def dims(self) -> list[int]:
        """Return the indexed dims."""
        return [dim for dim, index in enumerate(self.indices) if index is not None]

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the broadcast shape of the indices."""
        shapes = [index.shape for index in self.indices if index is not None]
        rank = max(map(len, shapes))
        padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
        return tuple(max(sizes) for sizes in zip(*padded, strict=True))

    @property
    def kept(self) -> list[int]:
        """Return the dims that are not indexed."""
        return [dim for dim in range(len(self.x_shape)) if dim not in self.dims]

    @property
    def start(self) -> int:
        """Return where the index dims stand in the result: in place if the indexed dims are neighbours, else in front."""
        dims = self.dims
        return dims[0] if dims == list(range(dims[0], dims[0] + len(dims))) else 0

    @property
    def result_shape(self) -> tuple[int, ...]:
        """Return the shape of x[indices]."""
        kept = [self.x_shape[dim] for dim in self.kept]
        return (*kept[: self.start], *self.shape, *kept[self.start :])

    def source(self, k: KernelBuilder, reads: dict[int, TirBuffer], at: Sequence[Expr]) -> list[Expr]:
        """Return the place in x for a place in the result."""
        rank = len(self.shape)
        own = list(at[self.start : self.start + rank])
        rest = iter([*at[: self.start], *at[self.start + rank :]])
        places: list[Expr] = []
        for dim, size in enumerate(self.x_shape):
            index = self.indices[dim] if dim < len(self.indices) else None
            if index is None:
                places.append(next(rest))
                continue
            used = own[rank - len(index.shape) :]
            where = tuple(i if extent > 1 else 0 for i, extent in zip(used, index.shape, strict=True)) or (0,)
            places.append(k.let("at", place(reads[dim][where], index.dtype, size, True)))
        return places

    def reads(self, k: KernelBuilder) -> dict[int, TirBuffer]:
        """Take the indices as inputs of a kernel."""
        return {dim: k.read("index", index) for dim, index in enumerate(self.indices) if index is not None}


def _advanced(x: Buffer, indices: Sequence[Buffer | None]) -> _Advanced:
    for index in indices:
        if index is not None and index.dtype in ("bool", "uint8"):
            raise RefusedError("indexing with a mask, whose result has no fixed size", "use torch.where or masked_fill")
    return _Advanced(x.shape, tuple(indices))


def _dims(shape: Sequence[int], name: str = "i") -> dict[str, int]:
    return {f"{name}{n}": size for n, size in enumerate(shape)} or {"once": 1}


@lowering("aten.index.Tensor", "aten._unsafe_index.Tensor")
def _index(context: Context, x: Buffer, indices: list[Buffer | None]) -> Buffer:
    plan = _advanced(x, indices)
    result = context.result()
    with context.kernel() as k:
        source, reads, y = k.read("x", x), plan.reads(k), k.write("y", result, plan.result_shape)
        with k.grid(**_dims(plan.result_shape)) as at:
            k.store(y, source[tuple(plan.source(k, reads, at))], *(at if plan.result_shape else (0,)))
    return result


# ---- writes ----


def base(context: Context, x: Buffer) -> Buffer:
    """Return a buffer that holds x and may be changed: x itself if nobody reads it afterwards, else a copy."""
    if context.may_overwrite(x):
        return x
    result = context.result()
    with context.kernel("base") as k:
        source, y = k.read("x", x, (x.elements,)), k.write("y", result, (x.elements,))
        with k.grid(i=x.elements) as (i,):
            k.store(y, source[i], i)
    return result


def _same_root(context: Context, x: Buffer, others: Sequence[Buffer | None]) -> bool:
    return any(other is not None and context.root(other) == context.root(x) for other in others)


def _target(context: Context, x: Buffer, reads: Sequence[Buffer | None]) -> Buffer:
    """Like `base`, with a copy where an operand shares the bytes that are to be changed."""
    if _same_root(context, x, reads):
        result = context.result()
        with context.kernel("base") as k:
            source, y = k.read("x", x, (x.elements,)), k.write("y", result, (x.elements,))
            with k.grid(i=x.elements) as (i,):
                k.store(y, source[i], i)
        return result
    return base(context, x)


@lowering("aten.index_put.default")
def _index_put(context: Context, x: Buffer, indices: list[Buffer | None], values: Buffer, accumulate: bool) -> Buffer:
    plan = _advanced(x, indices)
    target = _target(context, x, [*indices, values])
    shape = plan.result_shape
    padded = (1,) * (len(shape) - len(values.shape)) + values.shape
    with context.kernel() as k:
        source, reads, y = k.read("values", values, padded), plan.reads(k), k.write("y", target, x.shape)
        with _in_order(k, shape) as at:
            places = plan.source(k, reads, at)
            value = source[tuple(i if size > 1 else 0 for i, size in zip(at, padded, strict=True)) or (0,)]
            k.store(y, y[tuple(places)] + value if accumulate else value, *places)
    return context.view(target)


class _in_order:  # noqa: N801  used like a function
    """Open a grid of one step and serial loops inside: writes that may meet must happen one after another."""

    def __init__(self, k: KernelBuilder, shape: Sequence[int]) -> None:
        from contextlib import ExitStack

        self.k, self.shape, self.stack = k, shape, ExitStack()

    def __enter__(self) -> tuple[Expr, ...]:
        self.stack.enter_context(self.k.grid(once=1))
        return tuple(self.stack.enter_context(self.k.loop(name, 0, size)) for name, size in _dims(self.shape).items())

    def __exit__(self, *error: Any) -> None:
        self.stack.close()


@lowering("aten.index_copy.default")
def _index_copy(context: Context, x: Buffer, dim: int, index: Buffer, source: Buffer) -> Buffer:
    return _index_write(context, x, dim, index, source, lambda old, new: new)


@lowering("aten.index_add.default")
def _index_add(context: Context, x: Buffer, dim: int, index: Buffer, source: Buffer, alpha: float) -> Buffer:
    return _index_write(context, x, dim, index, source, lambda old, new: old + new * constant(alpha, x.dtype))


def _index_write(
    context: Context, x: Buffer, dim: int, index: Buffer, source: Buffer, combine: Callable[[Expr, Expr], Expr]
) -> Buffer:
    before, size, after = split_at(x.shape, dim)
    count = index.elements
    target = _target(context, x, [index, source])
    with context.kernel() as k:
        places, new = k.read("index", index, (count,)), k.read("source", source, (before, count, after))
        y = k.write("y", target, (before, size, after))
        with k.grid(o=before, i=after) as (o, i), k.loop("j", 0, count) as j:
            at = k.let("at", place(places[j], index.dtype, size, False))
            k.store(y, combine(y[o, at, i], new[o, j, i]), o, at, i)
    return context.view(target)


@lowering("aten.scatter.src", "aten.scatter.value", "aten.scatter_add.default")
def _scatter(context: Context, x: Buffer, dim: int, index: Buffer, source: Buffer | float) -> Buffer:
    dim = normalize_dim(dim, len(x.shape))
    tensor = source if isinstance(source, Buffer) else None
    target = _target(context, x, [index, tensor])
    add = "scatter_add" in context.operator
    with context.kernel() as k:
        places, y = k.read("index", index), k.write("y", target, x.shape)
        new = k.read("source", tensor) if tensor else None
        with _in_order(k, index.shape) as at:
            found = place(places[at], index.dtype, x.shape[dim], False)
            where = tuple(found if n == dim else i for n, i in enumerate(at))
            value = new[at] if new is not None else constant(source, x.dtype)  # type: ignore[arg-type]
            k.store(y, y[where] + value if add else value, *where)
    return context.view(target)


def _write_view(context: Context, x: Buffer, source: Buffer, layout: Layout) -> Buffer:
    """Write `source` over a strided view of x."""
    target = _target(context, x, [source])
    shape = layout.shape or (1,)
    strides = layout.strides or (0,)
    with context.kernel() as k:
        new, y = k.read("source", source, shape), k.write("y", target, (x.elements,))
        with k.grid(**_dims(shape)) as at:
            where: Expr = layout.offset
            for i, stride in zip(at, strides, strict=True):
                where = where + i * stride
            k.store(y, cast(new[at], source.dtype, x.dtype), where)
    return context.view(target)


@lowering("aten.select_scatter.default")
def _select_scatter(context: Context, x: Buffer, source: Buffer, dim: int, index: int) -> Buffer:
    before, size, after = split_at(x.shape, dim)
    return _write_view(context, x, source, Layout((before, after), (size * after, 1), (index % size) * after))


@lowering("aten.slice_scatter.default")
def _slice_scatter(
    context: Context, x: Buffer, source: Buffer, dim: int, start: int | None, end: int | None, step: int
) -> Buffer:
    before, size, after = split_at(x.shape, dim)
    first, last, stride = slice(start, end, step).indices(size)
    count = max(0, math.ceil((last - first) / stride))
    layout = Layout((before, count, after), (size * after, stride * after, 1), first * after)
    return _write_view(context, x, source, layout)


@lowering("aten.copy.default")
def _copy(context: Context, x: Buffer, source: Buffer, non_blocking: bool) -> Buffer:
    if source.shape == context.shape and source.dtype == context.dtype:
        return context.view(source)
    from dsopt.backends.tir.ops.broadcast import elementwise

    return elementwise(context, [source], lambda value: value)
