"""Read .npy files from strangers: nothing is unpickled, and no memory is taken on the word of a header."""

from __future__ import annotations

import io
import math
import tokenize
from typing import Any

import numpy as np
import numpy.typing as npt

MAGIC = b"\x93NUMPY"


def parse_npy(content: bytes | bytearray) -> npt.NDArray[Any]:
    """Return the array in the bytes of a .npy file, sharing their memory. Raises ValueError for all that is no array of numbers."""
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} of the format is not known")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(stream)
    except (TypeError, SyntaxError, KeyError, EOFError, MemoryError, RecursionError, tokenize.TokenError) as error:
        raise ValueError(f"its header cannot be read: {error}") from error
    if dtype.hasobject or dtype.names is not None:
        raise ValueError(f"it holds {dtype}, and only numbers are read")
    found, wanted = len(content) - stream.tell(), math.prod(shape) * dtype.itemsize
    if found != wanted or min(shape, default=0) < 0:
        raise ValueError(f"{dtype}{list(shape)} takes {wanted:,} bytes, and {found:,} are there")
    if wanted == 0:
        return np.zeros(shape, dtype)
    flat = np.frombuffer(content, dtype, offset=stream.tell())
    return flat.reshape(shape, order="F" if is_fortran else "C")
