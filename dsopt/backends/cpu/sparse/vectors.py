"""Arithmetic on vectors of float32: transposing, adding up, exponential and logarithm."""

from __future__ import annotations

import math

from dsopt.backends.cpu.sparse.code import Code, Memory, as_float, as_integer, either, most, number, same
from dsopt.backends.tir.tvm_adapter import Expr, constant, tirx

LANES = 8
"""Lanes where a vector runs along a row of memory; rows are padded to multiples of it."""

_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_LEAST = -88.3762626647949
"""exp is 0 from here on: 2^-127.5 has no normal float32 beside it."""
_TO_INTEGER = 1.5 * 2.0**23
"""Added to a float of less than 2^22, it leaves the nearest integer in the lowest bits."""


def pieces(length: int, lanes: int) -> list[tuple[int, int]]:
    """Return (first, lanes) of vectors that make up a row of a multiple of 8 elements."""
    assert length % LANES == 0
    whole = length // lanes * lanes
    return [(at, lanes) for at in range(0, whole, lanes)] + [(at, LANES) for at in range(whole, length, LANES)]


def _orders(lanes: int, step: int) -> list[list[Expr]]:
    """Return which lanes of two vectors, `step` apart, make the two of the next round of a transposition."""
    first = [lane if not lane & step else lanes + lane - step for lane in range(lanes)]
    second = [lane + step if not lane & step else lanes + lane for lane in range(lanes)]
    return [[constant(lane, "int32") for lane in order] for order in (first, second)]


def transposed(code: Code, vectors: list[Expr]) -> list[Expr]:
    """Return the columns of a square of vectors."""
    lanes, step = len(vectors), 1
    while step < lanes:
        first, second = _orders(lanes, step)
        for place in (each for each in range(lanes) if not each & step):
            pair = [vectors[place], vectors[place + step]]
            vectors[place] = code.let(tirx.Shuffle(pair, first))
            vectors[place + step] = code.let(tirx.Shuffle(pair, second))
        step *= 2
    return vectors


def sums(code: Code, vectors: list[Expr]) -> Expr:
    """Return one vector whose lane n is the sum of the lanes of vector n; as many vectors as lanes."""
    lanes, step = len(vectors), 1
    while len(vectors) > 1:
        first, second = _orders(lanes, step)
        pairs = [list(pair) for pair in zip(vectors[::2], vectors[1::2], strict=True)]
        vectors = [code.let(tirx.Shuffle(pair, first) + tirx.Shuffle(pair, second)) for pair in pairs]
        step *= 2
    return vectors[0]


def sum_of(code: Code, vector: Expr, lanes: int) -> Expr:
    """Return the sum of the lanes of one vector."""
    return _folded(code, vector, lanes, lambda a, b: a + b)


def most_of(code: Code, vector: Expr, lanes: int) -> Expr:
    """Return the largest lane."""
    return _folded(code, vector, lanes, tirx.Max)


def least_of(code: Code, vector: Expr, lanes: int) -> Expr:
    """Return the smallest lane."""
    return _folded(code, vector, lanes, tirx.Min)


def _folded(code: Code, vector: Expr, lanes: int, join: object) -> Expr:
    assert callable(join)
    while lanes > 1:
        lanes //= 2
        low = tirx.Shuffle([vector], [constant(lane, "int32") for lane in range(lanes)])
        high = tirx.Shuffle([vector], [constant(lane + lanes, "int32") for lane in range(lanes)])
        vector = code.let(join(low, high))
    return vector


def _spread(value: float, lanes: int) -> Expr:
    return same(number(value), lanes) if lanes > 1 else number(value)


def _polynomial(x: Expr, coefficients: list[float], lanes: int) -> Expr:
    value = _spread(coefficients[-1], lanes)
    for each in reversed(coefficients[:-1]):
        value = value * x + _spread(each, lanes)
    return value


def exponential(code: Code, x: Expr, lanes: int) -> Expr:
    """Return exp(x) for x <= 88, to 1e-7 of it; 0 below the smallest normal float32.

    x = n ln 2 + r with |r| <= ln(2) / 2 (Cody and Waite); exp(r) by its series, whose first term left out is below 6e-9.
    """
    bounded = code.let(most(x, _spread(_LEAST, lanes)))
    shifted = code.let(bounded * _spread(1 / math.log(2), lanes) + _spread(_TO_INTEGER, lanes))
    whole = code.let(shifted - _spread(_TO_INTEGER, lanes))
    rest = code.let(whole * _spread(-_LN2_HIGH, lanes) + bounded)
    rest = code.let(whole * _spread(-_LN2_LOW, lanes) + rest)
    value = _polynomial(rest, [1 / math.factorial(n) for n in range(8)], lanes)
    bits = as_integer(shifted) + _integers(127, lanes)
    return value * as_float(tirx.shift_left(bits, _integers(23, lanes)))


def _integers(value: int, lanes: int) -> Expr:
    return same(constant(value, "int32"), lanes) if lanes > 1 else constant(value, "int32")


def logarithm(code: Code, x: Expr) -> Expr:
    """Return log(x) of one positive normal float32, to 1e-7 of it or of 1.

    x = 2^n (1 + f), 1 + f in [sqrt(1/2), sqrt(2)); log(1 + f) = 2 artanh(f / (2 + f)) by its series.
    """
    bits = code.let(as_integer(x))
    above = code.let(bits - constant(0x3F3504F3, "int32"))  # so that the exponent changes at sqrt(1/2)
    power = code.let(tirx.shift_right(above, constant(23, "int32")))
    mantissa = as_float(code.let(bits - tirx.shift_left(power, constant(23, "int32"))))
    f = code.let(mantissa - number(1.0))
    s = code.let(f / (f + number(2.0)))
    z = code.let(s * s)
    series = _polynomial(z, [2.0 / (2 * n + 3) for n in range(6)], 1)
    scale = code.let(tirx.Cast("float32", power))
    small = s * number(2.0) + (s * z * series + scale * number(_LN2_LOW))
    return code.let(scale * number(_LN2_HIGH) + small)


def clear(code: Code, memory: Memory, first: Expr, count: Expr, lanes: int = LANES) -> None:
    """Fill with zeros; the count is a multiple of the lanes."""
    with code.loop(tirx.truncdiv(count, constant(lanes, "int64"))) as i:
        code.set(memory, _spread(0.0, lanes), first + i * lanes)


def kept(condition: Expr, value: Expr, instead: float, lanes: int) -> Expr:
    """Return the value where a condition holds, and a constant elsewhere."""
    return either(condition, value, _spread(instead, lanes))
