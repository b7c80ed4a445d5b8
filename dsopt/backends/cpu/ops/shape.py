"""Views and relayouts: reshape, permute, squeeze, expand, repeat, shuffles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from dsopt.backends.cpu.builder import Value
from dsopt.backends.cpu.emitter import Emitter, Extent
from dsopt.backends.cpu.registry import RefusalError, converter
from dsopt.ir.torch_private import same_size


@converter("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default", "aten.view_copy.default")
def convert_reshape(cx: Emitter, x: fx.Node, sizes: Sequence[Any]) -> Value:
    """Write a reshape."""
    extents = [None if size == -1 else cx.size(size) for size in sizes] if _needs_sizes(cx, x) else None
    return cx.reshape(cx.value(x), cx.shape(x), cx.out.shape, extents)


def _needs_sizes(cx: Emitter, x: fx.Node) -> bool:
    """Tell whether more than one size of the result varies, so that the given sizes may be asked for."""
    return sum(not isinstance(size, int) for size in cx.out.shape) > 1


@converter(
    "aten.flatten.using_ints",
    "aten.unflatten.int",
    "aten.view_as.default",
    "aten.reshape_as.default",
    "aten.ravel.default",
)
def convert_recorded_reshape(cx: Emitter, x: fx.Node, *args: Any) -> Value:
    """Write a reshape to the recorded shape."""
    return cx.reshape(cx.value(x), cx.shape(x), cx.out.shape)


@converter("aten.permute.default", "aten.permute_copy.default")
def convert_permute(cx: Emitter, x: fx.Node, dims: Sequence[int]) -> Value:
    """Write a permutation of the axes."""
    return cx.transpose(cx.value(x), [cx.axis(dim, cx.rank(x)) for dim in dims])


@converter("aten.transpose.int", "aten.swapaxes.default", "aten.swapdims.default", "aten.transpose_copy.int")
def convert_transpose(cx: Emitter, x: fx.Node, dim0: int, dim1: int) -> Value:
    """Write two axes swapped."""
    return _swapped(cx, x, dim0, dim1)


@converter("aten.t.default", "aten.numpy_T.default", "aten.mT.default", "aten.adjoint.default")
def convert_t(cx: Emitter, x: fx.Node) -> Value:
    """Write the transpose of a matrix."""
    return cx.value(x) if cx.rank(x) < 2 else _swapped(cx, x, -2, -1)


def _swapped(cx: Emitter, x: fx.Node, first: int, second: int) -> Value:
    rank = cx.rank(x)
    order = list(range(rank))
    if rank:
        a, b = cx.axis(first, rank), cx.axis(second, rank)
        order[a], order[b] = order[b], order[a]
    return cx.transpose(cx.value(x), order)


@converter("aten.movedim.int", "aten.movedim.intlist", "aten.moveaxis.int", "aten.moveaxis.intlist")
def convert_movedim(cx: Emitter, x: fx.Node, source: Any, destination: Any) -> Value:
    """Write axes moved to other places, the rest in order."""
    rank = cx.rank(x)
    sources = [cx.axis(dim, rank) for dim in ([source] if isinstance(source, int) else source)]
    targets = [cx.axis(dim, rank) for dim in ([destination] if isinstance(destination, int) else destination)]
    moved = dict(zip(targets, sources, strict=True))
    rest = iter(axis for axis in range(rank) if axis not in sources)
    return cx.transpose(cx.value(x), [moved[axis] if axis in moved else next(rest) for axis in range(rank)])


@converter("aten.unsqueeze.default", "aten.unsqueeze_copy.default")
def convert_unsqueeze(cx: Emitter, x: fx.Node, dim: int) -> Value:
    """Write a new axis of size 1."""
    return cx.unsqueeze(cx.value(x), cx.axis(dim, cx.rank(x) + 1))


@converter("aten.squeeze.default", "aten.squeeze.dim", "aten.squeeze.dims", "aten.squeeze_copy.dims")
def convert_squeeze(cx: Emitter, x: fx.Node, dim: Any = None) -> Value:
    """Write axes of size 1 removed: all, or those named."""
    rank = cx.rank(x)
    named = list(range(rank)) if dim is None else [dim] if isinstance(dim, int) else list(dim)
    axes = sorted({cx.axis(each, rank) for each in named if rank})
    kept = [axis for axis in axes if isinstance(cx.shape(x)[axis], int) and cx.shape(x)[axis] == 1]
    return cx.squeeze(cx.value(x), *kept)


@converter("aten.expand.default", "aten.broadcast_to.default", "aten.expand_copy.default")
def convert_expand(cx: Emitter, x: fx.Node, sizes: Sequence[Any], *, implicit: bool = False) -> Value:
    """Write axes of size 1 repeated."""
    before, after = cx.shape(x), cx.out.shape
    lead = len(after) - len(before)
    if not lead and all(same_size(a, b) for a, b in zip(before, after, strict=True)):
        return cx.value(x)
    keeps = [axis >= lead and same_size(before[axis - lead], after[axis]) for axis in range(len(after))]
    plan = [1 if keeps[axis] or size == -1 else cx.size(size) for axis, size in enumerate(sizes)]
    return cx.op("Expand", cx.value(x), cx.sizes(plan))


@converter("aten.expand_as.default")
def convert_expand_as(cx: Emitter, x: fx.Node, other: fx.Node) -> Value:
    """Write axes of size 1 repeated to another's shape."""
    return cx.op("Expand", cx.value(x), cx.shape_of(other))


@converter("aten.broadcast_tensors.default")
def convert_broadcast_tensors(cx: Emitter, tensors: Sequence[fx.Node]) -> tuple[Value, ...]:
    """Write all tensors in their common shape."""
    return tuple(expand_to(cx, cx.value(each), tensors) for each in tensors)


def expand_to(cx: Emitter, value: Value, tensors: Sequence[fx.Node]) -> Value:
    """Expand a value to the common shape of tensors; Expand broadcasts both ways, so that each shape is applied in turn."""
    for each in tensors:
        value = cx.op("Expand", value, cx.shape_of(each))
    return value


@converter("aten.repeat.default", "aten.tile.default")
def convert_repeat(cx: Emitter, x: fx.Node, repeats: Sequence[Any]) -> Value:
    """Write the tensor repeated along each axis."""
    value, missing = cx.value(x), len(repeats) - cx.rank(x)
    if missing > 0:
        value = cx.unsqueeze(value, *range(missing))
    counts = [1] * -missing + [cx.size(each) for each in repeats]
    return value if all(count == 1 for count in counts) else cx.op("Tile", value, cx.sizes(counts))


@converter("aten.repeat_interleave.self_int")
def convert_repeat_interleave(
    cx: Emitter, x: fx.Node, repeats: Any, dim: int | None = None, *, output_size: Any = None
) -> Value:
    """Write each element along an axis repeated in place."""
    value, rank = cx.value(x), cx.rank(x)
    if dim is None:
        value, rank, axis = cx.op("Reshape", value, cx.vector([-1])), 1, 0
    else:
        axis = cx.axis(dim, rank)
    counts: list[Extent] = [1] * (rank + 1)
    counts[axis + 1] = cx.size(repeats)
    wide = cx.op("Tile", cx.unsqueeze(value, axis + 1), cx.sizes(counts))
    if dim is None:
        return cx.op("Reshape", wide, cx.vector([-1]))
    before, count = cx.shape(x), repeats.meta["val"] if isinstance(repeats, fx.Node) else repeats
    return cx.reshape(wide, [*before[: axis + 1], count, *before[axis + 1 :]], cx.out.shape)


@converter("aten.diagonal.default")
def convert_diagonal(cx: Emitter, x: fx.Node, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Value:
    """Write a diagonal, its axis last."""
    rank = cx.rank(x)
    first, second = cx.axis(dim1, rank), cx.axis(dim2, rank)
    rest = [axis for axis in range(rank) if axis not in (first, second)]
    sizes = [cx.fixed(cx.shape(x)[axis], "the size of the diagonal's matrix") for axis in (first, second)]
    length = cx.out.shape[-1]
    start = (max(-offset, 0), max(offset, 0))
    index = torch.tensor([[start[0] + i, start[1] + i] for i in range(length)], dtype=torch.int64).reshape(-1, 2)
    flat = index[:, 0] * sizes[1] + index[:, 1]
    moved = cx.transpose(cx.value(x), [*rest, first, second])
    merged = cx.op("Reshape", moved, cx.vector([*([0] * len(rest)), sizes[0] * sizes[1]]))
    return cx.op("Gather", merged, cx.constant(flat, torch.int64), axis=len(rest))


@converter("aten.diag_embed.default")
def convert_diag_embed(cx: Emitter, x: fx.Node, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Value:
    """Write matrices with the last axis on their main diagonal."""
    rank = cx.rank(x)
    if offset or (cx.axis(dim1, rank + 1), cx.axis(dim2, rank + 1)) != (rank - 1, rank):
        raise RefusalError("diag_embed off the main diagonal or with other axes", "move the axes afterwards")
    length = cx.fixed(cx.shape(x)[-1], "the length of the diagonal")
    unit = cx.constant(torch.eye(length), torch.bool)
    return cx.op("Where", unit, cx.unsqueeze(cx.value(x), rank), cx.constant(0, cx.dtype), dtype=cx.dtype)


@converter("aten.flip.default")
def convert_flip(cx: Emitter, x: fx.Node, dims: Sequence[int]) -> Value:
    """Write axes in reverse order."""
    return _flipped(cx, cx.value(x), [cx.axis(dim, cx.rank(x)) for dim in dims])


@converter("aten.fliplr.default")
def convert_fliplr(cx: Emitter, x: fx.Node) -> Value:
    """Write axis 1 in reverse order."""
    return _flipped(cx, cx.value(x), [1])


@converter("aten.flipud.default")
def convert_flipud(cx: Emitter, x: fx.Node) -> Value:
    """Write axis 0 in reverse order."""
    return _flipped(cx, cx.value(x), [0])


@converter("aten.rot90.default")
def convert_rot90(cx: Emitter, x: fx.Node, k: int = 1, dims: Sequence[int] = (0, 1)) -> Value:
    """Write quarter turns from the first axis to the second."""
    value, (first, second) = cx.value(x), (cx.axis(dim, cx.rank(x)) for dim in dims)
    order = list(range(cx.rank(x)))
    order[first], order[second] = second, first
    if k % 4 == 1:
        return cx.transpose(_flipped(cx, value, [second]), order)
    if k % 4 == 3:
        return cx.transpose(_flipped(cx, value, [first]), order)
    return _flipped(cx, value, [first, second] if k % 4 else [])


def _flipped(cx: Emitter, value: Value, axes: Sequence[int]) -> Value:
    if not axes:
        return value
    count = len(axes)
    first, last = cx.vector([-1] * count), cx.vector([-(2**63)] * count)
    return cx.op("Slice", value, first, last, cx.vector(axes), cx.vector([-1] * count))


@converter("aten.roll.default")
def convert_roll(cx: Emitter, x: fx.Node, shifts: Sequence[Any], dims: Sequence[int] = ()) -> Value:
    """Write axes rolled around."""
    value = cx.value(x)
    if not dims:
        flat = _rolled(cx, cx.op("Reshape", value, cx.vector([-1])), 0, int(shifts[0]), None)
        return cx.op("Reshape", flat, cx.shape_of(x))
    for shift, dim in zip(shifts, dims, strict=True):
        axis = cx.axis(dim, cx.rank(x))
        value = _rolled(cx, value, axis, cx.fixed(shift, "the shift of roll"), cx.shape(x)[axis])
    return value


def _rolled(cx: Emitter, value: Value, axis: int, shift: int, size: Any) -> Value:
    if isinstance(size, int) and size:
        shift %= size
    if shift == 0 or size == 0:
        return value
    if not isinstance(size, int) and size is not None:
        raise RefusalError("roll along a dim that varies", "fix this size when capturing")
    end = cx.slice(value, axis, -shift, 2**63 - 1)
    start = cx.slice(value, axis, 0, -shift)
    return cx.op("Concat", end, start, axis=axis)


@converter("aten.pixel_shuffle.default")
def convert_pixel_shuffle(cx: Emitter, x: fx.Node, upscale_factor: int) -> Value:
    """Write (B, C r r, H, W) -> (B, C, H r, W r)."""
    _check_image(cx, x)
    return cx.op("DepthToSpace", cx.value(x), blocksize=upscale_factor, mode="CRD")


@converter("aten.pixel_unshuffle.default")
def convert_pixel_unshuffle(cx: Emitter, x: fx.Node, downscale_factor: int) -> Value:
    """Write (B, C, H r, W r) -> (B, C r r, H, W); SpaceToDepth orders its channels differently."""
    _check_image(cx, x)
    r, shape = downscale_factor, cx.shape(x)
    _, channels, height, width = (cx.fixed(size, "the image's size") if axis else 0 for axis, size in enumerate(shape))
    split = cx.op("Reshape", cx.value(x), cx.vector([0, channels, height // r, r, width // r, r]))
    ordered = cx.transpose(split, [0, 1, 3, 5, 2, 4])
    return cx.op("Reshape", ordered, cx.vector([0, channels * r * r, height // r, width // r]))


@converter("aten.channel_shuffle.default", "aten.native_channel_shuffle.default")
def convert_channel_shuffle(cx: Emitter, x: fx.Node, groups: int) -> Value:
    """Write channels interleaved between groups."""
    channels = cx.fixed(cx.shape(x)[1], "the number of channels")
    order = torch.arange(channels).reshape(groups, -1).T.reshape(-1)
    return cx.op("Gather", cx.value(x), cx.constant(order, torch.int64), axis=1)


def _check_image(cx: Emitter, x: fx.Node) -> None:
    if cx.rank(x) != 4:
        raise RefusalError(
            f"a pixel shuffle of a tensor of rank {cx.rank(x)}", "give it a batch of images (B, C, H, W)"
        )
