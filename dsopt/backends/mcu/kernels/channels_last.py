"""Operators that work on each element, or pool, on images with channels last: the generic loops over the shape of the bytes."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from dsopt.backends.mcu.kernels.copying import copied, joined_in_place, part_of
from dsopt.backends.tir import ops  # noqa: F401  registers the generic lowerings
from dsopt.backends.tir.ops.relayout import contiguous_strides, strided_copy
from dsopt.backends.tir.program import Buffer, MicroKernel, channels_to_end
from dsopt.backends.tir.registry import LOWERINGS, Context, Layout, Lowering, UnsuitedError
from dsopt.backends.tir.tvm_adapter import element


def with_channels_last(context: Context, x: Buffer) -> Buffer:
    """Return an image with channels last: the same bytes where one dim only has more than one element, else a copy."""
    if x.channels_last:
        return x
    session = context.session
    if x.shape[1] == 1 or all(size == 1 for size in x.shape[2:]):
        return session.add_buffer(f"{x.name}_last", x.shape, x.dtype, x.name, True)
    target = session.add_buffer(f"{context.label}_last", x.shape, x.dtype, None, True)
    with context.kernel("last") as k:
        source, y = k.read("x", x), k.write("y", target, target.stored_shape)
        with k.grid(**{f"i{n}": size for n, size in enumerate(target.stored_shape)}) as index:
            batch, *spatial, channel = index
            k.store(y, element(source, batch, channel, *spatial), *index)
    return target


def elementwise(operator: str, operands: int) -> Lowering:
    """Return a lowering that runs the generic one over the bytes. operands: how many of the first arguments are images."""
    generic = LOWERINGS[operator]

    def lower(context: Context, *arguments: Any) -> Buffer:
        images = arguments[:operands]
        if not any(each.channels_last for each in images):
            raise UnsuitedError("")
        if any(len(each.shape) != len(context.shape) for each in images):
            raise UnsuitedError("its operands have different ranks")
        stored = [_as_stored(context, with_channels_last(context, each)) for each in images]
        return _restored(context, generic(_stored_context(context, context.shape), *stored, *arguments[operands:]))

    return lower


def _as_stored(context: Context, x: Buffer) -> Buffer:
    return context.session.add_buffer(f"{x.name}_flat", x.stored_shape, x.dtype, x.name)


def _stored_context(context: Context, shape: tuple[int, ...]) -> Context:
    return Context(context.session, context.operator, context.label, [(channels_to_end(shape), context.dtype)], False)


def _restored(context: Context, y: Any) -> Buffer:
    assert isinstance(y, Buffer)
    return context.session.add_buffer(f"{y.name}_last", context.shape, y.dtype, y.name, True)


def reordered(image_operators: Collection[str]) -> Lowering:
    """Return a lowering of permutations that no byte need move for: to an image whose channels lie last already, or back from one.

    image_operators: those that take such an image as it is. Others would get a copy each, where one will do.
    """

    def lower(context: Context, x: Buffer, *_: Any) -> Buffer:
        (layout,) = context.layouts()
        rank = len(layout.shape)
        if rank < 3 or len(x.shape) != rank:
            raise UnsuitedError("")
        if x.channels_last:
            strides = channels_to_end(contiguous_strides(x.shape))
            if (layout.shape, layout.strides, layout.offset) != (x.stored_shape, strides, 0):
                raise UnsuitedError("")
            return context.session.add_buffer(f"{x.name}_view", layout.shape, x.dtype, x.name)
        stored = Layout(channels_to_end(layout.shape), channels_to_end(layout.strides), layout.offset)
        if not stored.is_whole(x.elements) or not {*context.readers()} <= {*image_operators}:
            raise UnsuitedError("")
        return context.session.add_buffer(f"{x.name}_last", layout.shape, x.dtype, x.name, True)

    return lower


def joined(copy: MicroKernel, context: Context, parts: list[Buffer], dim: int = 0) -> Buffer:
    """Lower cat of images, of which one has channels last, in the order of its bytes. copy: what copies bytes in a row."""
    if not any(each.channels_last for each in parts) or any(len(each.shape) != len(context.shape) for each in parts):
        raise UnsuitedError("")
    stored = [_as_stored(context, with_channels_last(context, each)) for each in parts]
    inner = _stored_context(context, context.shape)
    place = _stored_dim(dim, len(context.shape))
    if math.prod(inner.shape[:place]) == 1 and all(part.dtype == context.dtype for part in parts):
        return _restored(context, joined_in_place(copy, inner, stored))
    return _restored(context, LOWERINGS[context.operator](inner, stored, place))


def sliced(
    copy: MicroKernel, context: Context, x: Buffer, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Buffer:  # fmt: skip
    """Lower slice, that of an image with channels last in the order of its bytes. copy: what copies bytes in a row."""
    if not x.channels_last:
        (layout,) = context.layouts()
        found = None if layout.is_whole(x.elements) else copied(copy, context, x, layout)
        if found is None:
            raise UnsuitedError("")
        return found
    if len(x.shape) != len(context.shape):
        raise UnsuitedError("")
    place = _stored_dim(dim, len(x.shape))
    strides = contiguous_strides(x.stored_shape)
    offset = strides[place] * range(x.stored_shape[place])[slice(start, end, step)].start
    strides[place] *= step
    layout = Layout(channels_to_end(context.shape), tuple(strides), offset)
    inner, stored = _stored_context(context, context.shape), _as_stored(context, x)
    found = part_of(inner, stored, layout) or copied(copy, inner, stored, layout)
    return _restored(context, found or strided_copy(inner, stored, layout))


def _stored_dim(dim: int, rank: int) -> int:
    return (0, *range(2, rank), 1).index(dim % rank)


def mean(context: Context, x: Buffer, dims: list[int], keepdim: bool, *rest: Any) -> Buffer:
    """Lower q_mean over dims of an image with channels last, in the order of its bytes."""
    rank = len(x.shape)
    if not x.channels_last:
        raise UnsuitedError("")
    places = {dim: place for place, dim in enumerate((0, *range(2, rank), 1))}
    moved = [places[dim % rank] for dim in (dims or range(rank))]
    kept = [dim for dim in range(rank) if dim % rank not in {each % rank for each in (dims or range(rank))}]
    if not keepdim and kept not in ([0, 1], [0], []):
        raise UnsuitedError("")
    flat = _as_stored(context, x)
    shape = channels_to_end(context.shape) if keepdim else context.shape
    inner = Context(context.session, context.operator, context.label, [(shape, context.dtype)], False)
    y = LOWERINGS[context.operator](inner, flat, moved, keepdim, *rest)
    return _restored(context, y) if keepdim else y  # type: ignore[return-value]
