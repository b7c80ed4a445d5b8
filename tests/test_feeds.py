"""Inputs from files: cut into runs, with every misfit named; damaged files are refused."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsopt.errors import InputError, ReadError
from dsopt.feeds import read_npz, split_feeds

F32 = np.float32
X = {"name": "x", "shape": [1, 3], "dtype": "float32"}
Y = {"name": "y", "shape": ["batch"], "dtype": "int64"}


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read(tmp_path: Path, write: Callable[..., None]) -> None:
    arrays = {"x": np.arange(6, dtype=F32).reshape(2, 3).T, "opts.k": np.array(3), "zeros": np.zeros((2000, 1000))}
    write(tmp_path / "a.npz", **arrays)
    found = read_npz(tmp_path / "a.npz")
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    np.save(tmp_path / "a.npy", arrays["x"])
    np.testing.assert_array_equal(read_npz(tmp_path / "a.npy")[""], arrays["x"])


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", b"\x93NUMPY"])
def test_what_is_no_file_of_arrays_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ReadError, match="DS0911"):
        read_npz(tmp_path / "a.npz")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="DS0910"):
        read_npz(tmp_path / "none.npz")
    with pytest.raises(ReadError, match="DS0911"):
        read_npz(tmp_path)


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{}], object))
    with pytest.raises(ReadError, match="it holds object, and only numbers are read"):
        read_npz(tmp_path / "a.npz")


def _written(write: Callable[..., None]) -> bytes:
    buffer = io.BytesIO()
    write(buffer, x=np.arange(60, dtype=F32).reshape(20, 3), y=np.zeros(5, np.int64))
    return buffer.getvalue()


@given(
    st.sampled_from([_written(np.savez), _written(np.savez_compressed)]),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, 2000),
)
def test_altered_files_are_read_or_refused(content: bytes, changes: list[tuple[int, int]], length: int) -> None:
    altered = bytearray(content)
    for position, value in changes:
        altered[position % len(altered)] = value
    with tempfile.TemporaryDirectory() as folder:
        for some in (altered, altered[:length]):
            (Path(folder) / "a.npz").write_bytes(some)
            try:
                read_npz(Path(folder) / "a.npz")
            except ReadError as error:
                assert error.code in ("DS0910", "DS0911")


@pytest.mark.parametrize(
    ("shape", "runs"),
    [((1, 3), 1), ((4, 1, 3), 4), ((4, 3), 4)],
    ids=["one run", "an axis of samples", "a longer first axis"],
)
def test_arrays_are_cut_into_runs(shape: tuple[int, ...], runs: int) -> None:
    x = np.arange(np.prod(shape), dtype=F32).reshape(shape)
    feeds = split_feeds({"x": x, "labels": np.zeros(9)}, [X])
    assert [feed["x"].shape for feed in feeds] == [(1, 3)] * runs
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in feeds]).ravel(), x.ravel())
    assert len(split_feeds({"x": x}, [X], limit=2)) == min(runs, 2)


@pytest.mark.parametrize(
    ("arrays", "hint"),
    [
        ({"X": np.ones((1, 3), F32)}, r"numpy.savez\(path, x=...\)\n    the data has: X float32\[1, 3\]"),
        ({"xs": np.ones((1, 3), F32)}, "write xs, if that is what it is, under the name of the input"),
        ({}, "the data has: nothing"),
        ({"x": np.ones((1, 3))}, r"cast x: .astype\('float32'\)"),
        ({"x": np.ones((3, 5), F32)}, r"put the axes of x into the order of the input: .transpose\(1, 0\)"),
        ({"x": np.ones((5, 4), F32)}, r"give x the shape of the input, \[1, 3\], or \[samples, 1, 3\]"),
    ],
)
def test_what_would_fit_is_said(arrays: dict[str, Any], hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        split_feeds(arrays, [X])


def test_images_with_channels_last_are_told_the_order_of_axes() -> None:
    image = {"name": "x", "shape": [1, 3, 8, 9], "dtype": "float32"}
    with pytest.raises(InputError, match=r"\.transpose\(0, 3, 1, 2\)"):
        split_feeds({"x": np.ones((20, 8, 9, 3), F32)}, [image])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "x: missing"),
        ({"x": np.ones((1, 3)), "y": np.zeros(2, np.int64)}, "x: is float64, must be float32"),
        ({"x": np.ones((1, 4), F32), "y": np.zeros(2, np.int64)}, r"x: has shape \[1, 4\], must be \[1, 3\]"),
        ({"x": np.ones((2, 1, 3), F32), "y": np.zeros((3, 2), np.int64)}, "different numbers of runs"),
    ],
)
def test_what_does_not_fit_is_named(arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        split_feeds(arrays, [X, Y])
