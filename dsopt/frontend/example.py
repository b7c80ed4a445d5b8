"""Make example inputs from `--input name:shape:dtype`, for models that carry none."""

from __future__ import annotations

import difflib
import re
import zlib

import torch
from torch import Tensor

from dsopt.errors import UsageError

MAX_BYTES = 16 * 2**30
_FORM = "name:2x3x224x224:float32, or name:1x16:int64:0..999 to say what the integers are"
_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
_ALIASES = {
    "float": "float32",
    "double": "float64",
    "half": "float16",
    "int": "int32",
    "long": "int64",
    "f32": "float32",
}


def parse_input_spec(text: str) -> tuple[str, Tensor]:
    """Return the input name and an example tensor that `name:shape:dtype` describes; the same text gives the same numbers.

    shape: sizes joined by "x"; empty for a tensor without axes.  dtype: float32 if left out.  Floats are normal; integers
    are 0 or 1, valid as indices and token ids of nearly any model, or of the range that a fourth part "0..999" names.
    Raises UsageError DS0160 if the text has another form, DS0161 for an unknown dtype, DS0162 for a size that cannot be made.
    """
    parts = text.split(":")
    if not 2 <= len(parts) <= 4 or not all(part.isidentifier() for part in parts[0].split(".")):
        raise UsageError("DS0160", f"{text!r} does not describe an input", fix=f"Write {_FORM}.")
    name, dtype = parts[0], _dtype(parts[2] if len(parts) > 2 and parts[2] else "float32", text)
    shape = _shape(parts[1], text, dtype)
    low, high = _bounds(parts[3], dtype, text) if len(parts) > 3 else (0, 1)
    generator = torch.Generator().manual_seed(zlib.crc32(text.encode()))
    if dtype.is_floating_point:
        return name, torch.randn(shape, generator=generator).to(dtype)
    return name, torch.randint(low, high + 1, shape, generator=generator).to(dtype)


def _shape(text: str, spec: str, dtype: torch.dtype) -> tuple[int, ...]:
    if text and not re.fullmatch(r"\d{1,18}(?:[x,*]\d{1,18})*", text):
        raise UsageError("DS0160", f"{text!r} in {spec!r} is not a shape", fix=f"Join sizes by x: {_FORM}.")
    shape = tuple(int(size) for size in re.split("[x,*]", text)) if text else ()
    if 0 in shape:
        raise UsageError(
            "DS0162",
            f"{spec!r} has an axis of size 0: there is nothing to compute",
            fix="Give every axis a size of 1 or more.",
        )
    count = dtype.itemsize
    for size in shape:
        count *= size
    if count > MAX_BYTES:
        raise UsageError(
            "DS0162",
            f"{spec!r} takes {count:,} bytes; an example may have {MAX_BYTES:,}",
            fix="Give a smaller example.",
        )
    return shape


def _dtype(name: str, spec: str) -> torch.dtype:
    plain = name.lower().removeprefix("torch.")
    found = _DTYPES.get(_ALIASES.get(plain, plain))
    if found is None:
        near = difflib.get_close_matches(plain, _DTYPES, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise UsageError("DS0161", f"{name!r} in {spec!r} is not a dtype", fix=f"{hint}Known: {', '.join(_DTYPES)}.")
    return found


def _bounds(text: str, dtype: torch.dtype, spec: str) -> tuple[int, int]:
    found = re.fullmatch(r"(-?\d{1,18})\.\.(-?\d{1,18})", text)
    if found is None or dtype.is_floating_point or dtype is torch.bool:
        raise UsageError("DS0160", f"{text!r} in {spec!r} is not a range of integers", fix=f"Write {_FORM}.")
    low, high = int(found[1]), int(found[2])
    if not torch.iinfo(dtype).min <= low <= high <= torch.iinfo(dtype).max:
        raise UsageError(
            "DS0162", f"{text!r} in {spec!r} is empty or does not fit {dtype}", fix="Write the smaller end first."
        )
    return low, high
