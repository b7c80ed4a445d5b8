"""packing.c and greedy.c by ctypes: compiled at first use, with arrays that packing.py has checked."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from dsopt.native import native_library

Array = np.ndarray[Any, Any]

_SOURCES = tuple(Path(__file__).with_name(name) for name in ("packing.c", "greedy.c"))
_INT32, _INT64 = ctypes.c_int32, ctypes.c_int64
_POINTER = ctypes.c_void_p


class NativeEngine:
    """What packing.py asks of an engine, in C. Raises OSError or AttributeError if the library is not what it should be."""

    name = "c"

    def __init__(self, library: Path) -> None:
        code = ctypes.CDLL(str(library))
        self._search, self._fit = code.pack_search, code.pack_greedily
        self._search.argtypes = (_INT32, _INT32, *[_POINTER] * 4, _INT64, _INT64, _POINTER, _POINTER)
        self._fit.argtypes = (
            _INT32, *[_POINTER] * 4, _INT64, _INT32, _POINTER, _INT64, _POINTER, _POINTER,
        )  # fmt: skip
        self._search.restype = self._fit.restype = _INT32

    def search(
        self, first: Array, last: Array, size: Array, same: Array, capacity: int, budget: int
    ) -> tuple[int, Array, int]:
        """Return the status, the offsets if it is SOLVED, and the number of nodes. Raises MemoryError."""
        arrays = [_int32(first), _int32(last), _int64(size), _int32(same)]
        offsets, nodes = np.zeros(len(size), np.int64), _INT64()
        status = self._search(
            len(size), int(arrays[1].max()), *map(_address, arrays), capacity, budget, _address(offsets), ctypes.byref(nodes)
        )  # fmt: skip
        if status < 0:
            raise MemoryError(f"no memory is left to search for a packing of {len(size):,} buffers")
        return status, offsets, nodes.value

    def fit(
        self, first: Array, last: Array, size: Array, by_first: Array, pairs: int, orders: list[Array], enough: int
    ) -> tuple[Array, int]:
        """Return the best offsets over the orders, into first and into smallest gaps, and where they end. Raises MemoryError."""
        arrays = [_int32(first), _int32(last), _int64(size), _int32(by_first)]
        listed = _int32(np.stack(orders))
        offsets, height = np.zeros(len(size), np.int64), _INT64()
        status = self._fit(
            len(size), *map(_address, arrays), pairs, len(orders), _address(listed), enough, _address(offsets), ctypes.byref(height)
        )  # fmt: skip
        if status < 0:
            raise MemoryError(
                f"no memory is left to place {len(size):,} buffers, of which {pairs:,} pairs are alive together"
            )
        return offsets, height.value


@cache
def native_engine() -> NativeEngine | None:
    """Return the engine in C; None where there is no C compiler."""
    library = native_library(*_SOURCES)
    if library is None:
        return None
    try:
        return NativeEngine(library)
    except (OSError, AttributeError):
        return None


def _int32(values: Array) -> Array:
    return np.ascontiguousarray(values, np.int32)


def _int64(values: Array) -> Array:
    return np.ascontiguousarray(values, np.int64)


def _address(values: Array) -> int:
    return int(values.ctypes.data)
