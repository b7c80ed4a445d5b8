"""Operators that move elements and compute nothing: views, slices, transposes, repeats, joins, pads.

An operator that is a view in torch is asked for its strides on a contiguous tensor; a view that keeps the order of the bytes
costs no kernel, any other is one strided copy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dsopt.backends.tir.ops.softmax import split_at
from dsopt.backends.tir.program import Buffer
from dsopt.backends.tir.registry import Context, Layout, RefusedError, lowering, normalize_dim
from dsopt.backends.tir.tvm_adapter import Expr, constant, element, tirx

# ---- views ----

_VIEWS = (
    "alias.default", "as_strided.default", "chunk.default", "detach.default", "diagonal.default", "expand.default",
    "expand_as.default", "flatten.using_ints", "movedim.int", "movedim.intlist", "narrow.default", "numpy_T.default",
    "permute.default", "ravel.default", "reshape.default", "reshape_as.default", "select.int", "slice.Tensor", "split.Tensor",
    "split.sizes", "split_with_sizes.default", "squeeze.default", "squeeze.dim", "squeeze.dims", "swapaxes.default",
    "swapdims.default", "t.default", "tensor_split.indices", "tensor_split.sections", "transpose.int", "unbind.int",
    "unflatten.int", "unfold.default", "unsafe_chunk.default", "unsafe_split.Tensor", "unsafe_split_with_sizes.default",
    "unsqueeze.default", "view.default", "view_as.default", "_unsafe_view.default", "hsplit.int", "vsplit.int",
    "mT.default", "matrix_H.default", "adjoint.default", "_reshape_alias.default",
)  # fmt: skip


@lowering(*(f"aten.{name}" for name in _VIEWS))
def _view(context: Context, x: Buffer, *arguments: Any) -> Buffer | tuple[Buffer | None, ...]:
    layouts = context.layouts()
    results = tuple(
        context.view(x, layout.shape) if layout.is_whole(x.elements) else strided_copy(context, x, layout, number)
        for number, layout in enumerate(layouts)
    )
    return results[0] if len(results) == 1 and not context.is_tuple else results


_IDENTITIES = (
    "clone.default", "contiguous.default", "lift_fresh_copy.default", "lift_fresh.default", "detach_copy.default", "lift.default",
    "dropout.default", "alpha_dropout.default", "feature_dropout.default", "native_dropout.default", "positive.default",
    "resolve_conj.default", "resolve_neg.default", "conj.default", "view_as_real_copy.default",
)  # fmt: skip


@lowering(*(f"aten.{name}" for name in _IDENTITIES))
def _identity(context: Context, x: Buffer, *arguments: Any) -> Buffer:
    if "dropout" in context.operator and arguments[-1] is True:
        raise RefusedError("dropout in training mode", "export the model in eval mode")
    return context.view(x)


def strided_copy(context: Context, x: Buffer, layout: Layout, number: int = 0) -> Buffer:
    """Copy the elements of a strided view of `x` into a contiguous result."""
    result = context.result(number)
    extents, strides = merged(layout.shape, layout.strides)
    with context.kernel(str(number) if context.is_tuple else "") as k:
        source, y = k.read("x", x, (x.elements,)), k.write("y", result, extents)
        with k.grid(**{f"i{n}" if len(extents) > 1 else "i": extent for n, extent in enumerate(extents)}) as index:
            place: Expr = layout.offset
            for at, stride in zip(index, strides, strict=True):
                place = place + at * stride
            k.store(y, source[place], *index)
    return result


def merged(shape: Sequence[int], strides: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Merge neighbouring dims that one stride walks through; drop dims of size 1."""
    extents: list[int] = []
    steps: list[int] = []
    for extent, stride in zip(shape, strides, strict=True):
        if extent == 1:
            continue
        if extents and steps[-1] == stride * extent:
            extents[-1], steps[-1] = extents[-1] * extent, stride
        else:
            extents.append(extent)
            steps.append(stride)
    return (tuple(extents), tuple(steps)) if extents else ((1,), (0,))


def contiguous_strides(shape: Sequence[int]) -> list[int]:
    """Return the strides of a contiguous array, in elements."""
    return [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]


# ---- repeats and shuffles: copies whose source is a strided view with more dims ----


@lowering("aten.repeat.default", "aten.tile.default")
def _repeat(context: Context, x: Buffer, repeats: list[int]) -> Buffer:
    rank = max(len(repeats), len(x.shape))
    sizes = (1,) * (rank - len(x.shape)) + x.shape
    times = [1] * (rank - len(repeats)) + list(repeats)
    shape = [value for pair in zip(times, sizes, strict=True) for value in pair]
    strides = [value for stride in contiguous_strides(sizes) for value in (0, stride)]
    return strided_copy(context, x, Layout(tuple(shape), tuple(strides), 0))


@lowering("aten.repeat_interleave.self_int")
def _repeat_interleave(context: Context, x: Buffer, times: int, dim: int | None, output_size: int | None) -> Buffer:
    before, size, after = (1, x.elements, 1) if dim is None else split_at(x.shape, dim)
    return strided_copy(context, x, Layout((before, size, times, after), (size * after, after, 0, 1), 0))


@lowering("aten.pixel_shuffle.default")
def _pixel_shuffle(context: Context, x: Buffer, factor: int) -> Buffer:
    *batch, C, H, W = x.shape
    r, plane = factor, H * W
    shape = (math.prod(batch), C // (r * r), H, r, W, r)
    return strided_copy(context, x, Layout(shape, (C * plane, r * r * plane, W, r * plane, 1, plane), 0))


@lowering("aten.pixel_unshuffle.default")
def _pixel_unshuffle(context: Context, x: Buffer, factor: int) -> Buffer:
    *batch, C, H, W = x.shape
    r = factor
    shape = (math.prod(batch), C, r, r, H // r, W // r)
    return strided_copy(context, x, Layout(shape, (C * H * W, H * W, W, 1, r * W, r), 0))


@lowering("aten.channel_shuffle.default", "aten.native_channel_shuffle.default")
def _channel_shuffle(context: Context, x: Buffer, groups: int) -> Buffer:
    B, C = x.shape[0], x.shape[1]
    inner = x.elements // (B * C)
    return strided_copy(
        context, x, Layout((B, C // groups, groups, inner), (C * inner, inner, C // groups * inner, 1), 0)
    )


@lowering("aten.flip.default")
def _flip(context: Context, x: Buffer, dims: list[int]) -> Buffer:
    strides = contiguous_strides(x.shape)
    offset = 0
    for dim in {normalize_dim(dim, len(x.shape)) for dim in dims}:
        offset += (x.shape[dim] - 1) * strides[dim]
        strides[dim] = -strides[dim]
    return strided_copy(context, x, Layout(x.shape, tuple(strides), offset))


@lowering("aten.roll.default")
def _roll(context: Context, x: Buffer, shifts: list[int], dims: list[int]) -> Buffer:
    shape = x.shape if dims else (x.elements,)
    moved = dict.fromkeys(range(len(shape)), 0)
    for shift, dim in zip(shifts, dims or [0], strict=True):
        moved[normalize_dim(dim, len(shape))] += shift
    result = context.result()
    with context.kernel() as k:
        source, y = k.read("x", x, shape), k.write("y", result, shape)
        with k.grid(**{f"i{n}": extent for n, extent in enumerate(shape)}) as index:
            places = []
            for n, (at, extent) in enumerate(zip(index, shape, strict=True)):
                back = moved[n] % extent
                places.append(tirx.Select(at < back, at + (extent - back), at - back) if back else at)
            k.store(y, source[tuple(places)], *index)
    return result


# ---- joins ----


@lowering("aten.cat.default", "aten.concat.default", "aten.concatenate.default")
def _cat(context: Context, parts: list[Buffer], dim: int) -> Buffer:
    return _join(context, [part for part in parts if part.shape != (0,)], dim, context.shape)


@lowering("aten.stack.default")
def _stack(context: Context, parts: list[Buffer], dim: int) -> Buffer:
    return _join(context, parts, dim, context.shape)


def _join(context: Context, parts: Sequence[Buffer], dim: int, shape: tuple[int, ...]) -> Buffer:
    before = split_at(shape, dim)[0]
    result = context.result()
    row = result.elements // before
    offset = 0
    for number, part in enumerate(parts):
        width = part.elements // before
        with context.kernel(str(number)) as k:
            x, y = k.read("x", part, (before, width)), k.write("y", result, (before, row))
            with k.grid(o=before, i=width) as (o, i):
                value = x[o, i]
                k.store(y, value if part.dtype == context.dtype else tirx.Cast(context.dtype, value), o, i + offset)
        offset += width
    return result


# ---- pads ----


@lowering("aten.constant_pad_nd.default")
def _constant_pad(context: Context, x: Buffer, pad: list[int], value: float) -> Buffer:
    return _pad(context, x, pad, "constant", value)


@lowering("aten.pad.default")
def _any_pad(context: Context, x: Buffer, pad: list[int], mode: str, value: float | None) -> Buffer:
    return _pad(context, x, pad, mode, value or 0)


def _register_pads() -> None:
    for rank in (1, 2, 3):
        for word, mode in (("reflection", "reflect"), ("replication", "replicate")):
            lowering(f"aten.{word}_pad{rank}d.default")(
                lambda context, x, pad, mode=mode: _pad(context, x, pad, mode, 0)
            )


_register_pads()


@dataclass(frozen=True)
class _PadDim:
    size: int
    before: int
    mode: str

    def place(self, at: Expr) -> Expr:
        """Return the place in the input that output place `at` shows."""
        inside = at - self.before
        if self.mode == "constant" or (self.before == 0 and self.size == 0):
            return inside
        if self.mode == "replicate":
            return tirx.max(0, tirx.min(inside, self.size - 1))
        if self.mode == "circular":
            return tirx.truncmod(inside + self.size, self.size)
        # reflect at both ends without repeating the edge: |i|, then (n - 1) - |n - 1 - i|
        return (self.size - 1) - _absolute((self.size - 1) - _absolute(inside))


def _absolute(value: Expr) -> Expr:
    return tirx.max(value, 0 - value)


def _pad(context: Context, x: Buffer, pad: Sequence[int], mode: str, value: float) -> Buffer:
    rank = len(x.shape)
    amounts = {rank - 1 - n: (pad[2 * n], pad[2 * n + 1]) for n in range(len(pad) // 2)}
    padded = [dim for dim in range(rank) if amounts.get(dim, (0, 0)) != (0, 0)]
    if not padded:
        return context.view(x)
    first = padded[0]
    sizes = (math.prod(x.shape[:first]), *x.shape[first:])
    shape = (sizes[0], *context.shape[first:])
    dims = [_PadDim(size, amounts.get(first + n, (0, 0))[0], mode) for n, size in enumerate(sizes[1:])]
    result = context.result()
    with context.kernel() as k:
        source, y = k.read("x", x, sizes), k.write("y", result, shape)
        with k.grid(**{f"i{n}": extent for n, extent in enumerate(shape)}) as (outer, *index):
            places = [
                dim.place(at) if extent != dim.size or dim.before else at
                for dim, at, extent in zip(dims, index, shape[1:], strict=True)
            ]
            shown = element(source, outer, *places)
            if mode == "constant":
                inside = [
                    tirx.all(place >= 0, place < dim.size)
                    for dim, place, extent in zip(dims, places, shape[1:], strict=True)
                    if extent != dim.size or dim.before
                ]
                shown = tirx.if_then_else(tirx.all(*inside), shown, constant(value, x.dtype))
            k.store(y, shown, outer, *index)
    return result


# ---- triangles ----


def _register_triangle(word: str) -> None:
    @lowering(f"aten.{word}.default")
    def triangle(context: Context, x: Buffer, diagonal: int) -> Buffer:
        *batch, R, C = x.shape
        shape = (math.prod(batch), R, C)
        result = context.result()
        with context.kernel() as k:
            source, y = k.read("x", x, shape), k.write("y", result, shape)
            with k.grid(b=shape[0], r=R, c=C) as (b, r, c):
                kept = c - r <= diagonal if word == "tril" else c - r >= diagonal
                k.store(y, tirx.Select(kept, source[b, r, c], constant(0, x.dtype)), b, r, c)
        return result


_register_triangle("tril")
_register_triangle("triu")
