"""Seeded inputs fit the manifest that they are made from."""

from __future__ import annotations

import numpy as np
import pytest

from dsopt.errors import InputError, UsageError
from dsopt.runtime import DimRange, TensorSpec
from dsopt.runtime.examples import example_feeds

SPECS = (
    TensorSpec("x", ("batch", 3), "float32"),
    TensorSpec("ids", ("2*batch",), "int64"),
    TensorSpec("mask", (), "bool"),
    TensorSpec("half", (0,), "float16"),
)
DIMS = {"batch": DimRange(2, 9)}


def test_inputs_have_the_shapes_and_dtypes_asked_for() -> None:
    feeds = example_feeds(SPECS, DIMS, {"batch": 4})
    assert {name: (array.shape, str(array.dtype)) for name, array in feeds.items()} == {
        "x": ((4, 3), "float32"), "ids": ((8,), "int64"), "mask": ((), "bool"), "half": ((0,), "float16"),
    }  # fmt: skip
    assert set(np.unique(feeds["ids"])) <= {0, 1}


def test_sizes_not_given_are_the_least() -> None:
    assert example_feeds(SPECS, DIMS)["x"].shape == (2, 3)


def test_a_seed_gives_the_same_numbers_and_another_seed_others() -> None:
    first, again, other = (example_feeds(SPECS, DIMS, seed=seed)["x"] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_unknown_dims_and_impossible_sizes_are_refused() -> None:
    with pytest.raises(UsageError, match="DS0819: the artifact has no varying size 'width'"):
        example_feeds(SPECS, DIMS, {"width": 3})
    with pytest.raises(InputError, match="more than"):
        example_feeds(SPECS, DIMS, {"batch": 1 << 40})
    with pytest.raises(InputError, match="DS0820"):
        example_feeds((TensorSpec("x", ("batch-9",), "float32"),), DIMS)
