"""Data as samples: batches, fixed sizes, several inputs, labels, and what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import dsopt
from dsopt import Program
from dsopt.accuracy.samples import read_samples
from dsopt.errors import InputError, UsageError
from tests.accuracy.nets import layers, samples, two

BATCHED = layers()


def test_a_batch_that_varies_takes_many_samples_at_once_in_order() -> None:
    x = samples(70)
    found = read_samples(BATCHED, {"x": x, "labels": np.arange(70)})
    assert (found.count, found.batched, found.rows) == (70, True, 1)
    feeds = found.feeds(range(70))
    assert [len(feed["x"]) for feed in feeds] == [32, 32, 6]
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in feeds]), x)
    np.testing.assert_array_equal(found.labels_of([3, 1]), [3, 1])


@pytest.mark.parametrize("rows", [1, 3])
def test_a_fixed_batch_cuts_the_data_into_runs_with_labels_for_each_row(rows: int) -> None:
    x = samples(12)
    found = read_samples(layers(batch=rows), {"x": x, "labels": np.arange(12)})
    assert (found.count, found.batched, found.rows) == (12 // rows, False, rows)
    np.testing.assert_array_equal(found.feeds([1])[0]["x"], x[rows : 2 * rows])
    np.testing.assert_array_equal(found.labels_of([1, 0]), [*range(rows, 2 * rows), *range(rows)])


def test_inputs_of_different_first_sizes_are_cut_by_their_own() -> None:
    x, table = np.arange(24, dtype=np.float32).reshape(6, 4), np.arange(36, dtype=np.float32).reshape(12, 3)
    found = read_samples(two(), {"x": x, "table": table, "labels": np.arange(6)})
    assert (found.count, found.rows) == (3, 2)
    np.testing.assert_array_equal(found.feeds([2])[0]["x"], x[4:])
    np.testing.assert_array_equal(found.feeds([2])[0]["table"], table[8:])
    np.testing.assert_array_equal(found.labels_of([2]), [4, 5])


def test_an_axis_of_samples_in_front_is_one_run_an_entry() -> None:
    x, table = np.ones((5, 2, 4), np.float32), np.ones((5, 4, 3), np.float32)
    found = read_samples(two(), {"x": x, "table": table})
    assert found.count == 5
    assert found.feeds([0])[0]["x"].shape == (2, 4)
    assert found.labels is None


def test_a_file_and_runs_give_the_same_samples(tmp_path: Path) -> None:
    x = samples(5)
    np.savez(tmp_path / "x.npz", x=x)
    np.save(tmp_path / "x.npy", x)
    for data in (tmp_path / "x.npz", str(tmp_path / "x.npy"), [{"x": x[:2]}, {"x": x[2:]}]):
        np.testing.assert_array_equal(read_samples(BATCHED, data).feeds(range(5))[0]["x"], x)


def test_labels_may_have_another_name() -> None:
    data = {"x": samples(4), "classes": np.array([3, 1, 2, 0])}
    assert read_samples(BATCHED, data).labels is None
    np.testing.assert_array_equal(read_samples(BATCHED, data, "classes").labels_of([0]), [3])


@given(count=st.integers(1, 40), calibration=st.integers(1, 50), seed=st.integers(0, 9))
def test_calibration_and_judging_share_no_sample_unless_there_is_no_rest(count: int, calibration: int, seed: int) -> None:  # fmt: skip
    found = read_samples(BATCHED, {"x": samples(count)})
    first, rest = found.split(calibration, seed)
    assert len(first) == min(count, calibration)
    if calibration < count:
        assert sorted([*first, *rest]) == list(range(count))
    else:
        assert list(rest) == list(range(count))
    again = found.split(calibration, seed)
    assert [list(each) for each in again] == [list(first), list(rest)]


class Pair(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


def _bounded(least: int, largest: int) -> Program:
    batch = torch.export.Dim("batch", min=least, max=largest)
    exported = torch.export.export(Pair(), (torch.ones(least + 1, 3),), dynamic_shapes={"x": {0: batch}})
    return dsopt.capture(exported)


def test_batches_stay_within_the_bounds_of_the_model() -> None:
    found = read_samples(_bounded(4, 10), {"x": np.zeros((32, 3), np.float32)})
    sizes = [len(feed["x"]) for feed in found.feeds(range(32))]
    assert sum(sizes) == 32
    assert all(4 <= size <= 10 for size in sizes)
    with pytest.raises(UsageError, match="DS0340: 3 samples cannot be cut into batches of 4 to 10"):
        found.feeds(range(3))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"x": samples(4), "labels": np.arange(3)}, "DS0340: the data holds 4 samples and 3 labels"),
        ({"x": samples(4), "labels": np.int64(3)}, "DS0340: the labels are a single number"),
        ({"x": samples(0)}, "DS0402: the data holds no sample"),
        ([], "DS0402: the data holds no sample"),
        ([{"y": samples(1)}], "DS0312: the data lacks the input 'x'"),
        ({"y": samples(4)}, "x: missing"),
        ({"x": samples(4).astype(np.float64)}, "x: is float64, must be float32"),
        ({"x": samples(4)[:, :3]}, r"x: has shape \[4, 3\]"),
    ],
)
def test_data_that_does_not_fit_is_refused_with_the_reason(data: Any, message: str) -> None:
    with pytest.raises((UsageError, InputError), match=message):
        read_samples(BATCHED, data)


def test_more_labels_than_samples_of_a_fixed_batch_must_be_a_multiple() -> None:
    with pytest.raises(UsageError, match="DS0340: the data holds 4 samples and 5 labels"):
        read_samples(layers(batch=1), {"x": samples(4), "labels": np.arange(5)})


@given(places=st.sets(st.integers(0, 39), min_size=1), in_labels=st.booleans())
def test_samples_that_hold_nan_are_named_wherever_they_are(places: set[int], in_labels: bool) -> None:
    x, labels = samples(40), np.zeros(40, np.float32)
    read_samples(BATCHED, {"x": x, "labels": labels}).refuse_nan()
    for place in places:
        if in_labels:
            labels[place] = np.nan
        else:
            x[place, place % 16] = np.nan
    with pytest.raises(InputError) as caught:
        read_samples(BATCHED, {"x": x, "labels": labels}).refuse_nan()
    said = str(caught.value)
    name = "the labels" if in_labels else "x"
    assert f"{name}: {', '.join(str(place) for place in sorted(places)[:10])}" in said
    assert (f"and {len(places) - 10} more of 40" in said) == (len(places) > 10)


def test_one_sample_with_nan_is_found_though_it_is_not_drawn() -> None:
    for place in (3, 150):
        x = samples(200)
        x[place, 0] = np.nan
        with pytest.raises(InputError) as caught:
            dsopt.compile(layers(), "cpu", "...,quantize", {"x": x}, calibration_samples=2)
        assert caught.value.code == "DS0351"
