"""Integers that stand for real numbers, as expressions: less their zero point, clamped and narrowed, and how large they may get."""

from __future__ import annotations

from dsopt.backends.tir.program import ITEM_BYTES, Buffer
from dsopt.backends.tir.registry import RefusedError
from dsopt.backends.tir.tvm_adapter import Expr, tirx

_INTEGERS = ("int8", "int16", "int32", "uint8")


def need_integers(*buffers: Buffer | None) -> None:
    """Raise RefusedError for an operand that is no tensor of integers of up to 32 bits."""
    for each in buffers:
        if each is not None and each.dtype not in _INTEGERS:
            raise RefusedError(f"an integer operator on {each.dtype}", "quantise its input first")


def reach(source: Buffer, zero: int = 0) -> int:
    """Return the largest |q - zero| that a buffer's dtype allows."""
    bits = 8 * ITEM_BYTES[source.dtype]
    low, high = (0, (1 << bits) - 1) if source.dtype == "uint8" else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    return max(high - zero, zero - low)


def sum_dtype(largest: int) -> str:
    """Return the narrower of int32 and int64 that holds magnitudes up to `largest`. Raises RefusedError if neither does."""
    if largest >= 1 << 63:
        raise RefusedError("an integer operator whose sums need more than 64 bits", "use smaller factors")
    return "int32" if largest < 1 << 31 else "int64"


def cast(value: Expr, dtype: str) -> Expr:
    """Convert an integer to a type that holds it."""
    return value if str(value.ty.dtype) == dtype else tirx.Cast(dtype, value)


def centred(value: Expr, zero: int, dtype: str = "int32") -> Expr:
    """Return q - zero in a wider type."""
    return plus(cast(value, dtype), -zero)


def plus(value: Expr, number: int) -> Expr:
    """Add a number, written as a reader would."""
    return value - -number if number < 0 else value + number if number else value


def limited(value: Expr, low: int, high: int) -> Expr:
    """Return the value clamped to low..high."""
    return tirx.min(tirx.max(value, low), high)


def clamped(value: Expr, zero: int, low: int, high: int, dtype: str) -> Expr:
    """Return clamp(value + zero, low, high) in the dtype of a result."""
    return tirx.Cast(dtype, limited(plus(value, zero), low, high))
