"""Take values from callers as NumPy arrays: arrays, anything with DLPack (torch, jax, cupy), anything with __array__, numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def as_array(value: Any, dtype: str) -> Array:
    """Return `value` as a contiguous array of native byte order, of its own dtype and without copying where that is possible.

    dtype: what is wanted; a Python number, which has no width of its own, takes it if it is of that kind and fits.
    Raises ValueError saying what is wrong with the value and what to call.
    """
    if isinstance(value, np.ndarray):
        if isinstance(value, np.ma.MaskedArray):
            raise ValueError("is a masked array; fill it with .filled(...)")
        return _plain(value)
    if isinstance(value, np.generic):
        return np.asarray(value)
    if isinstance(value, (bool, int, float)):
        return _number(value, dtype)
    if hasattr(value, "__dlpack__"):
        return _plain(_from_dlpack(value))
    if hasattr(value, "__array__"):
        return _plain(np.asarray(value))
    raise ValueError(f"is a {type(value).__name__}; give an array, as np.asarray(value, np.{dtype}) makes one")


def _plain(array: Array) -> Array:
    native = array.dtype.newbyteorder("=")
    # Values stay the same when only the byte order changes. np.ascontiguousarray would give arrays of rank 0 an axis.
    return np.asarray(array, dtype=native, order="C")


def _number(value: bool | int | float, dtype: str) -> Array:
    wanted = np.dtype(dtype)
    kinds = {bool: "b", int: "iuf", float: "f"}[type(value)] if type(value) in (bool, int, float) else ""
    if wanted.kind not in kinds:
        raise ValueError(f"is a Python {type(value).__name__}, must be {dtype}; give np.{dtype}(...)")
    try:
        return np.asarray(value, wanted)
    except OverflowError as error:
        raise ValueError(f"is {value}, which does not fit {dtype}") from error


def _from_dlpack(value: Any) -> Array:
    kind = str(getattr(value, "dtype", ""))
    if "bfloat16" in kind or "float8" in kind:
        raise ValueError(f"is {kind}, which NumPy does not have; convert it, as with x.float()")
    if getattr(value, "requires_grad", False):
        raise ValueError("requires a gradient; give x.detach()")
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        device = str(getattr(value, "device", "cpu"))
        if not device.startswith("cpu"):
            raise ValueError(f"is on device {device}; give x.cpu()") from error
        raise ValueError(f"cannot be read as an array: {str(error)[:200]}") from error
