"""Reading and writing by index."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.backends.cpu.cases import Cases, bools, floats, ints, module, value

CASES = Cases()
X, GRID = floats("B", 3, 5), floats(6, 7, 8)


def set_columns(x: Tensor, place: Tensor, new: Tensor) -> Tensor:
    """Return a copy of x with x[:, place] set."""
    y = x.clone()
    y[:, place] = new
    return y


def written(x: Tensor, place: object, new: object, accumulate: bool = False) -> Tensor:
    """Return a copy of x with x[place] set."""
    return x.index_put(place, torch.as_tensor(new), accumulate)  # type: ignore[arg-type]


CASES.add("embedding", module(lambda: nn.Embedding(7, 4, padding_idx=0)), ints("B", 3, high=7))
CASES.add("embedding_int32", module(lambda: nn.Embedding(7, 4)), ints("B", 3, high=7, dtype=torch.int32))
CASES.add("index_select", lambda x, i: x.index_select(1, i), X, ints(4, high=3))
CASES.add("index_select_scalar", lambda x, i: x.index_select(1, i), X, value(2))
CASES.add("gather", lambda x, i: x.gather(2, i), X, ints("B", 3, 2))
CASES.add("gather_smaller", lambda x, i: x.gather(1, i), X, ints("B", 2, 4, high=3))
CASES.add("take_along_dim", lambda x, i: torch.take_along_dim(x, i, 2), X, ints("B", 1, 2), is_static=True)
CASES.add("take", torch.take, X, ints(3, high=9))
CASES.add("masked_select", torch.masked_select, X, bools("B", 3, 5), is_static=True)
CASES.add("nonzero", torch.nonzero, ints(4, 3, high=2))

# x[...]
CASES.add("one_index", lambda x, i: x[i], X, ints(3, low=-1, high=1))
CASES.add("one_index_second_axis", lambda x, i: x[:, i], X, ints(2, 2, low=-3, high=3))
CASES.add("one_index_last_axis", lambda x, i: x[..., i], X, ints(4, low=-5))
CASES.add("two_indices", lambda x, i, j: x[i, j], GRID, ints("B", high=6), ints("B", high=7))
CASES.add("two_indices_broadcast", lambda x, i, j: x[i[:, None], j], GRID, ints("B", high=6), ints(3, high=7))
CASES.add("two_indices_later", lambda x, i, j: x[:, i, j], GRID, ints("B", high=7), ints("B", high=8))
CASES.add("two_indices_apart", lambda x, i, j: x[i, :, j], GRID, ints("B", high=6), ints("B", high=8))
CASES.add("three_indices", lambda x, i, j: x[i, j, i], GRID, ints("B", low=-6, high=6), ints("B", high=7))
CASES.add("range_and_index", lambda x, i: x[torch.arange(x.shape[0]), i], X, ints("B", high=3))
CASES.add("last_token", lambda x, n: x[torch.arange(x.shape[0]), n - 1], X, ints("B", low=1, high=4))
CASES.add("bool_index", lambda x, m: x[m], GRID, bools(6), is_static=True)
CASES.add("bool_index_two_axes", lambda x, m: x[m], GRID, bools(6, 7), is_static=True)
CASES.add("bool_index_second_axis", lambda x, m: x[:, m], GRID, bools(7), is_static=True)

# writing
CASES.add("put", lambda x, i, v: x.index_put((i,), v), GRID, value([1, 4, 2]), floats(3, 7, 8))
CASES.add("put_number", lambda x, i: written(x, (i,), 5.0), GRID, value([1, 4, 2]))
CASES.add("put_two", lambda x, i, j, v: x.index_put((i, j), v), GRID, value([1, 4, 2]), value([0, 3, 5]), floats(3, 8))
CASES.add("put_accumulate", lambda x, i, v: x.index_put((i,), v, True), GRID, value([1, 1, 2]), floats(3, 7, 8))
CASES.add("put_mask_number", lambda x, m: written(x, (m,), 0.5), X, bools("B", 3, 5))
CASES.add("put_mask_rows", lambda x, m: written(x, (m,), 0.5), X, bools("B", 3))
CASES.add(
    "put_mask_values",
    lambda x, m, v: x.index_put((m,), v),
    floats(5),
    value([True, False, True, True, False]),
    floats(3),
)
CASES.add("put_second_axis", set_columns, GRID, value([1, 4]), floats(6, 2, 8))
CASES.add("put_broadcast", set_columns, GRID, value([1, 4]), floats(8))
CASES.add("index_copy", lambda x, i, v: x.index_copy(0, i, v), GRID, value([3, 0]), floats(2, 7, 8))
CASES.add(
    "index_copy_cache", lambda x, i, v: x.index_copy(2, i, v), floats("B", 2, 8, 3), value([5]), floats("B", 2, 1, 3)
)
CASES.add("index_add", lambda x, i, v: x.index_add(1, i, v, alpha=2), GRID, value([3, 3]), floats(6, 2, 8))
CASES.add("index_fill", lambda x, i: x.index_fill(1, i, -1.0), X, value([0, 2]))
CASES.add("scatter", lambda x, i, v: x.scatter(2, i, v), X, ints("B", 3, 1), floats("B", 3, 1))
CASES.add("scatter_number", lambda x, i: x.scatter(1, i, 2.0), X, ints("B", 1, 5, high=3))
CASES.add("scatter_larger_source", lambda x, i, v: x.scatter(2, i, v), X, ints("B", 2, 1), floats("B", 3, 4))
CASES.add("scatter_add", lambda x, i, v: x.scatter_add(2, i, v), X, ints("B", 3, 4), floats("B", 3, 4))
CASES.add(
    "scatter_reduce_amax", lambda x, i, v: x.scatter_reduce(2, i, v, "amax"), X, ints("B", 3, 4), floats("B", 3, 4)
)
CASES.add(
    "scatter_reduce_prod",
    lambda x, i, v: x.scatter_reduce(1, i, v, "prod"),
    X,
    ints("B", 2, 5, high=3),
    floats("B", 2, 5),
)
CASES.add("select_scatter", lambda x, v: x.select_scatter(v, 1, -1), X, floats("B", 5))
CASES.add("slice_scatter", lambda x, v: x.slice_scatter(v, 2, 1, 4), X, floats("B", 3, 3))
CASES.add("slice_scatter_step", lambda x, v: x.slice_scatter(v, 2, 0, 5, 2), X, floats("B", 3, 3))
CASES.add("slice_scatter_all", lambda x, v: x.slice_scatter(v, 1), X, X)
CASES.add("masked_scatter", lambda x, m, v: x.masked_scatter(m, v), X, bools("B", 3, 5), floats("B", 3, 5))
CASES.add(
    "searchsorted_rows",
    lambda b, x: torch.searchsorted(b.sort(-1).values, x, right=True),
    floats("B", 3, 5),
    floats("B", 3, 4),
)
CASES.add("bucketize", lambda x, b: torch.bucketize(x, b), X, value([-1.0, 0.0, 0.5]))
CASES.add("searchsorted_right", lambda x, b: torch.searchsorted(b, x, right=True), X, value([-1.0, 0.0, 0.5]))
