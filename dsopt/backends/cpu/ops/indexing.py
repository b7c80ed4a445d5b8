"""Reading by index: embeddings, gathers, and torch's indexing by tensors and masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from dsopt.backends.cpu.builder import Value
from dsopt.backends.cpu.emitter import Emitter
from dsopt.backends.cpu.ops.shape import expand_to
from dsopt.backends.cpu.registry import RefusalError, converter


@converter("aten.embedding.default")
def convert_embedding(cx: Emitter, weight: fx.Node, indices: fx.Node, *args: Any) -> Value:
    """Write rows of a table."""
    return cx.op("Gather", cx.value(weight), cx.value(indices), axis=0)


@converter("aten.index_select.default")
def convert_index_select(cx: Emitter, x: fx.Node, dim: int, index: fx.Node) -> Value:
    """Write slices along an axis."""
    if cx.rank(x) == 0:
        return cx.value(x)
    return cx.op("Gather", cx.value(x), vector_of(cx, index), axis=cx.axis(dim, cx.rank(x)))


def vector_of(cx: Emitter, index: fx.Node) -> Value:
    """Return an index of rank 0 as one of rank 1."""
    return cx.unsqueeze(cx.value(index), 0) if cx.rank(index) == 0 else cx.value(index)


@converter("aten.gather.default")
def convert_gather(cx: Emitter, x: fx.Node, dim: int, index: fx.Node, *, sparse_grad: bool = False) -> Value:
    """Write the elements at an index along an axis, each place with an index of its own."""
    if cx.rank(x) == 0:
        return cx.value(x)
    return cx.op("GatherElements", cx.value(x), cx.value(index), axis=cx.axis(dim, cx.rank(x)))


@converter("aten.take_along_dim.default")
def convert_take_along_dim(cx: Emitter, x: fx.Node, index: fx.Node, dim: int | None = None) -> Value:
    """Write the elements at an index along an axis; the shapes are broadcast along the others."""
    if dim is None:
        flat = cx.op("Reshape", cx.value(x), cx.vector([-1]))
        return cx.op("GatherElements", flat, cx.op("Reshape", cx.value(index), cx.vector([-1])), axis=0)
    axis = cx.axis(dim, cx.rank(x))
    sizes = [cx.extent(index if each == axis or cx.shape(x)[each] == 1 else x, each) for each in range(cx.rank(x))]
    own = [cx.extent(x, each) if each == axis else size for each, size in enumerate(sizes)]
    value, places = cx.op("Expand", cx.value(x), cx.sizes(own)), cx.op("Expand", cx.value(index), cx.sizes(sizes))
    return cx.op("GatherElements", value, places, axis=axis)


@converter("aten.take.default")
def convert_take(cx: Emitter, x: fx.Node, index: fx.Node) -> Value:
    """Write elements by their place in the flat tensor."""
    return cx.op("Gather", cx.op("Reshape", cx.value(x), cx.vector([-1])), cx.value(index), axis=0)


@converter("aten.masked_select.default")
def convert_masked_select(cx: Emitter, x: fx.Node, mask: fx.Node) -> Value:
    """Write the elements where a mask holds, in order."""
    value, chosen = (expand_to(cx, cx.value(each), [x, mask]) for each in (x, mask))
    return cx.op("Compress", value, cx.op("Reshape", chosen, cx.vector([-1])))


@converter("aten.nonzero.default")
def convert_nonzero(cx: Emitter, x: fx.Node) -> Value:
    """Write the places of elements that are not 0, a row each."""
    return cx.transpose(cx.op("NonZero", cx.value(x), dtype=torch.int64), [1, 0])


@converter("aten.index.Tensor", "aten._unsafe_index.Tensor")
def convert_index(cx: Emitter, x: fx.Node, indices: Sequence[fx.Node | None]) -> Value:
    """Write x[indices]: one index as Gather, several as GatherND over the axes that they index."""
    given = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    if len(given) == 1 and given[0][1].meta["val"].dtype != torch.bool:
        axis, index = given[0]
        return cx.op("Gather", cx.value(x), as_index(cx, index), axis=axis)
    plan = IndexPlan(cx, x, indices)
    picked = cx.op("GatherND", cx.transpose(cx.value(x), plan.order), plan.places())
    return cx.transpose(picked, plan.back())


def as_index(cx: Emitter, index: fx.Node) -> Value:
    """Return an index as int32 or int64."""
    value = cx.value(index)
    return value if value.dtype in (torch.int64, torch.int32) else cx.cast(value, torch.int64)


class IndexPlan:
    """How torch's indexing by several tensors maps to GatherND and ScatterND, which index the leading axes.

    order: permutation of x that brings the indexed axes to the front. A mask of rank r indexes r axes.
    """

    def __init__(self, cx: Emitter, x: fx.Node, indices: Sequence[fx.Node | None]) -> None:
        self.cx, self.parts = cx, list[Value]()
        self.tensors: list[fx.Node] = []
        self.indexed: list[int] = []
        axis = 0
        masks = [index for index in indices if index is not None and index.meta["val"].dtype == torch.bool]
        if masks and sum(index is not None for index in indices) > 1:
            raise RefusalError("a mask and another index together", "index in two steps")
        for index in indices:
            if index is None:
                axis += 1
                continue
            width = cx.rank(index) if index in masks else 1
            self.indexed += range(axis, axis + width)
            self.tensors.append(index)
            axis += width
        self.mask = masks[0] if masks else None
        rest = [axis for axis in range(cx.rank(x)) if axis not in self.indexed]
        self.order = [*self.indexed, *rest]
        self.rest = rest
        self.index_rank = 1 if masks else max(cx.rank(each) for each in self.tensors)
        together = self.indexed == list(range(self.indexed[0], self.indexed[0] + len(self.indexed)))
        self.place = self.indexed[0] if together else 0

    def places(self) -> Value:
        """Return the index of each result as a row: (*index shape, indexed axes)."""
        cx = self.cx
        if self.mask is not None:
            return cx.transpose(cx.op("NonZero", cx.value(self.mask), dtype=torch.int64), [1, 0])
        columns = [cx.cast(cx.value(each), torch.int64) for each in self.tensors]
        shapes = {tuple(map(str, cx.shape(each))) for each in self.tensors}
        if len(shapes) > 1:
            columns = [expand_to(cx, column, self.tensors) for column in columns]
        return cx.concat([cx.unsqueeze(column, self.index_rank) for column in columns], self.index_rank)

    def back(self) -> list[int]:
        """Return the permutation of (*index shape, *rest) that puts the index shape where torch has it."""
        count = self.index_rank
        rest = list(range(count, count + len(self.rest)))
        return [*rest[: self.place], *range(count), *rest[self.place :]]


@converter("aten.one_hot.default")
def convert_one_hot(cx: Emitter, x: fx.Node, num_classes: int = -1) -> Value:
    """Write one-hot rows."""
    if num_classes < 0:
        raise RefusalError("one_hot whose number of classes depends on the data", "give num_classes")
    classes = cx.constant(torch.arange(num_classes), cx.value(x).dtype)
    same = cx.op("Equal", cx.unsqueeze(cx.value(x), cx.rank(x)), classes, dtype=torch.bool)
    return cx.cast(same, torch.int64)


@converter("aten.tril.default")
def convert_tril(cx: Emitter, x: fx.Node, diagonal: Any = 0) -> Value:
    """Write the lower triangle, 0 elsewhere."""
    return _triangle(cx, x, diagonal, upper=0)


@converter("aten.triu.default")
def convert_triu(cx: Emitter, x: fx.Node, diagonal: Any = 0) -> Value:
    """Write the upper triangle, 0 elsewhere."""
    return _triangle(cx, x, diagonal, upper=1)


def _triangle(cx: Emitter, x: fx.Node, diagonal: Any, upper: int) -> Value:
    place = cx.size(diagonal)
    offset = cx.constant(place, torch.int64) if isinstance(place, int) else cx.op("Reshape", place, cx.vector([]))
    return cx.op("Trilu", cx.value(x), offset, upper=upper)


@converter("aten.meshgrid.default", "aten.meshgrid.indexing")
def convert_meshgrid(cx: Emitter, tensors: Sequence[fx.Node], *, indexing: str = "ij") -> tuple[Value, ...]:
    """Write grids of coordinates."""
    rank = len(tensors)
    places = list(range(rank))
    if indexing == "xy" and rank > 1:
        places[0], places[1] = 1, 0
    extents = [cx.extent(each, 0) if cx.rank(each) else 1 for each in tensors]
    sizes = cx.sizes([extents[places.index(axis)] for axis in range(rank)])
    lines = [cx.value(each) if cx.rank(each) else cx.unsqueeze(cx.value(each), 0) for each in tensors]
    columns = [
        cx.unsqueeze(line, *(axis for axis in range(rank) if axis != place))
        for line, place in zip(lines, places, strict=True)
    ]
    return tuple(cx.op("Expand", column, sizes) for column in columns)


@converter("aten.bucketize.Tensor")
def convert_bucketize(
    cx: Emitter, values: fx.Node, boundaries: fx.Node, *, out_int32: bool = False, right: bool = False
) -> Value:
    """Write how many boundaries lie before each value."""
    return _count_below(cx, boundaries, values, right)


@converter("aten.searchsorted.Tensor")
def convert_searchsorted(
    cx: Emitter,
    boundaries: fx.Node,
    values: fx.Node,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: fx.Node | None = None,
) -> Value:
    """Write where each value would be put in a sorted vector, or in the sorted row that belongs to its own row."""
    if sorter is not None:
        raise RefusalError("searchsorted by a sorter", "sort the boundaries")
    return _count_below(cx, boundaries, values, right or side == "right")


def _count_below(cx: Emitter, boundaries: fx.Node, values: fx.Node, right: bool) -> Value:
    dtype = cx.value(values).dtype
    column, row = cx.unsqueeze(cx.value(values), cx.rank(values)), cx.cast(cx.value(boundaries), dtype)
    if cx.rank(boundaries) > 1:
        row = cx.unsqueeze(row, cx.rank(boundaries) - 1)
    below = cx.op("LessOrEqual" if right else "Less", row, column, dtype=torch.bool)
    return cx.cast(cx.op("ReduceSum", cx.cast(below, torch.int64), cx.vector([-1]), keepdims=0), cx.dtype)
