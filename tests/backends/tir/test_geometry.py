"""Shapes and strides against numpy: broadcasting with merged dims, strided copies with merged dims, einsum's letters."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsopt.backends.tir.ops.broadcast import collapse
from dsopt.backends.tir.ops.matmul import _parse_einsum
from dsopt.backends.tir.ops.relayout import contiguous_strides, merged
from dsopt.backends.tir.registry import Layout, normalize_dim


@st.composite
def broadcasts(draw: st.DrawFn) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """A shape, and shapes that broadcast to it."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=0, max_size=5)))
    operands = []
    for _ in range(draw(st.integers(1, 3))):
        kept = [size if draw(st.booleans()) else 1 for size in shape]
        operands.append(tuple(kept[draw(st.integers(0, len(kept))) :]))
    return shape, operands


@given(broadcasts())
def test_merged_dims_read_the_same_elements_as_numpy_broadcasting(
    case: tuple[tuple[int, ...], list[tuple[int, ...]]],
) -> None:
    shape, operands = case
    extents, present = collapse(shape, operands)
    assert int(np.prod(extents)) == int(np.prod(shape))
    for operand, used in zip(operands, present, strict=True):
        array = np.arange(int(np.prod(operand))).reshape(operand)
        view = array.reshape([extent if has else 1 for extent, has in zip(extents, used, strict=True)])
        expected = np.broadcast_to(array, shape).reshape(-1)
        np.testing.assert_array_equal(np.broadcast_to(view, extents).reshape(-1), expected)


@st.composite
def views(draw: st.DrawFn) -> np.ndarray:  # type: ignore[type-arg]
    """A view of a contiguous array: sliced, transposed, with dims added."""
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    array = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
    for dim, size in enumerate(shape):
        start = draw(st.integers(0, size - 1))
        array = array[(slice(None),) * dim + (slice(start, None, draw(st.integers(1, 2))),)]
    array = array.transpose(draw(st.permutations(range(array.ndim))))
    return array[:, None] if draw(st.booleans()) else array


@given(views())
def test_merged_strides_walk_through_the_same_elements(view: np.ndarray) -> None:  # type: ignore[type-arg]
    strides = tuple(stride // 8 for stride in view.strides)
    extents, steps = merged(view.shape, strides)
    places = sum(np.arange(extent).reshape((-1,) + (1,) * (len(extents) - n - 1)) * step
                 for n, (extent, step) in enumerate(zip(extents, steps, strict=True)))  # fmt: skip
    offset = int(view.flat[0])
    np.testing.assert_array_equal(np.broadcast_to(places, extents).reshape(-1) + offset, view.reshape(-1))


@given(st.lists(st.integers(1, 5), max_size=4).map(tuple))
def test_a_contiguous_view_is_whole(shape: tuple[int, ...]) -> None:
    count = int(np.prod(shape))
    strides = tuple(contiguous_strides(shape))
    assert Layout(shape, strides, 0).is_whole(count)
    assert not Layout(shape, strides, 1).is_whole(count)
    assert not Layout(shape, strides, 0).is_whole(count + 1)


def test_a_transposed_view_is_not_whole_unless_a_dim_has_one_element() -> None:
    assert not Layout((2, 3), (1, 2), 0).is_whole(6)
    assert Layout((1, 6), (1, 1), 0).is_whole(6)
    assert Layout((6, 1), (1, 6), 0).is_whole(6)


@pytest.mark.parametrize(
    ("equation", "ranks", "inputs", "output"),
    [
        ("ij,jk->ik", (2, 2), ["ij", "jk"], "ik"),
        ("ij,jk", (2, 2), ["ij", "jk"], "ik"),
        ("ba", (2,), ["ba"], "ab"),
        ("...ij,...jk->...ik", (3, 4), ["Bij", "ABjk"], "ABik"),
        ("...i,i", (3, 1), ["ABi", "i"], "AB"),
        ("i,i->", (1, 1), ["i", "i"], ""),
    ],
)
def test_einsum_equations_are_spelled_out(
    equation: str, ranks: tuple[int, ...], inputs: list[str], output: str
) -> None:
    assert _parse_einsum(equation, ranks) == (inputs, output)


@pytest.mark.parametrize(
    ("dim", "rank", "counted"), [(-1, 3, 2), (0, 3, 0), (2, 3, 2), (-3, 3, 0), (-1, 0, 0), (0, 0, 0)]
)
def test_dims_are_counted_from_the_front(dim: int, rank: int, counted: int) -> None:
    assert normalize_dim(dim, rank) == counted
