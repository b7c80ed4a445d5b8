"""Arrays from strangers: what NumPy writes is read, and everything else is refused with a ValueError."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsopt.npy import parse_npy


def npy(value: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, value)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "value",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3)), np.array(3, np.int8),
        np.zeros((0, 4)), np.array([True, False]), np.arange(4, dtype=">i4"), np.ones(3, np.complex64), np.array(["ab"]),
    ],
)  # fmt: skip
def test_what_numpy_writes_is_read(value: Any) -> None:
    got = parse_npy(npy(value))
    assert got.dtype == value.dtype
    np.testing.assert_array_equal(got, value)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x93NUMPY", b"\x93NUMPY\x09\x00", npy(np.array([{}], object)), npy(np.zeros(3, [("a", "i4")])), npy(np.ones(3))[:-1],
        npy(np.ones(3)) + b"x", npy(np.ones(3)).replace(b"(3,)", b"(9,)"), npy(np.ones(3)).replace(b"(3,)", b"-3, "),
        npy(np.ones(3)).replace(b"(3,)", b"((((").replace(b"}", b" "),
    ],
)  # fmt: skip
def test_what_is_no_array_of_numbers_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_npy(content)


WHOLE = npy(np.arange(10, dtype=np.float32))


@given(
    st.lists(st.tuples(st.integers(0, 127), st.integers(0, 255)), min_size=1, max_size=5), st.integers(0, len(WHOLE))
)
def test_altered_files_are_read_or_refused(changes: list[tuple[int, int]], length: int) -> None:
    content = bytearray(WHOLE)
    for position, value in changes:
        content[position] = value
    for altered in (content, content[:length]):
        try:
            assert parse_npy(altered).nbytes <= len(altered)
        except ValueError as error:
            assert str(error)
