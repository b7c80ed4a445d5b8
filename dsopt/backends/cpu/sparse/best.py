"""The highest scores of a list: a threshold by bisection, then one scan that keeps the order of the list."""

from __future__ import annotations

from dsopt.backends.cpu.sparse.code import (
    INFINITY,
    Code,
    Memory,
    as_float,
    as_integer,
    divided,
    either,
    halved,
    least,
    most,
    narrow,
    number,
    rounded_up,
    same,
    wide,
)
from dsopt.backends.cpu.sparse.form import Form
from dsopt.backends.cpu.sparse.vectors import kept, least_of, most_of, sum_of
from dsopt.backends.tir.tvm_adapter import Expr, PrimFunc, constant, tirx

_BY_VALUE = 24
"""Bisections by value, which find the gap between two scores soon; the following ones halve the count of floats, and so end."""


def best(form: Form) -> PrimFunc:
    """Make dsopt_best: copy those of `size` indices whose scores are among the `count` highest and above -inf; of equals the first.

    score: floats behind the list up to a multiple of the lanes must be -inf.  state[slot]: how many were kept.
    """
    code = Code("dsopt_best")
    (score,) = code.floats("score")
    index, chosen, state = code.integers("index", "chosen", "state")
    size, count, slot = code.counts("size", "count", "slot")
    lanes = form.level.lanes
    groups = code.let(divided(rounded_up(size, lanes), lanes))
    threshold = code.registers("float32", [number(-INFINITY)])
    equals = code.counter(0)
    with code.when(_tally(code, score, groups, lanes, number(-INFINITY), above=True) > count):
        _find(code, score, groups, lanes, count, threshold, equals)
    place = code.counter(0)
    limit = code.let(threshold[0])
    with code.loop(size) as i:
        code.set(chosen, index[i], place[0])
        each = code.let(score[i])
        is_above = code.let(tirx.Cast("int64", each > limit))
        is_equal = code.let(tirx.Cast("int64", tirx.And(tirx.EQ(each, limit), equals[0] > 0)))
        code.set(equals, equals[0] - is_equal)
        code.set(place, place[0] + is_above + is_equal)
    code.set(state, narrow(place[0]), slot)
    return code.build()


def _tally(code: Code, score: Memory, groups: Expr, lanes: int, threshold: Expr, above: bool = False) -> Expr:
    """Return how many scores are at least, or above, a threshold."""
    none = same(constant(0, "int32"), lanes)
    found = code.registers(f"int32x{lanes}", [none])
    limit = code.let(same(threshold, lanes))
    with code.loop(groups) as i:
        each = score.vector(i * lanes, lanes)
        code.set(found, found[0] + tirx.Cast(f"int32x{lanes}", each > limit if above else each >= limit))
    return code.let(wide(sum_of(code, found[0], lanes)))


def _range(code: Code, score: Memory, groups: Expr, lanes: int) -> tuple[Expr, Expr]:
    """Return the lowest and the highest finite score."""
    low = code.registers(f"float32x{lanes}", [same(number(INFINITY), lanes)])
    high = code.registers(f"float32x{lanes}", [same(number(-INFINITY), lanes)])
    with code.loop(groups) as i:
        each = code.let(score.vector(i * lanes, lanes))
        code.set(low, least(low[0], kept(each > same(number(-INFINITY), lanes), each, INFINITY, lanes)))
        code.set(high, most(high[0], kept(each < same(number(INFINITY), lanes), each, -INFINITY, lanes)))
    return least_of(code, low[0], lanes), most_of(code, high[0], lanes)


def _rank(code: Code, value: Expr) -> Expr:
    """Return an int64 that is in the order of floats."""
    bits = code.let(as_integer(value))
    mask = tirx.bitwise_and(tirx.shift_right(bits, constant(31, "int32")), constant(0x7FFFFFFF, "int32"))
    return code.let(wide(tirx.bitwise_xor(bits, mask)))


def _of_rank(code: Code, rank: Expr) -> Expr:
    bits = code.let(narrow(rank))
    mask = tirx.bitwise_and(tirx.shift_right(bits, constant(31, "int32")), constant(0x7FFFFFFF, "int32"))
    return code.let(as_float(tirx.bitwise_xor(bits, mask)))


def _find(code: Code, score: Memory, groups: Expr, lanes: int, count: Expr, threshold: Memory, equals: Memory) -> None:
    """Set the score of the last one that is kept, and how many of those that are equal to it."""
    endless = _tally(code, score, groups, lanes, number(INFINITY))
    with code.when(endless >= count):
        code.set(threshold, number(INFINITY))
        code.set(equals, count)
    with code.otherwise():
        lowest, highest = _range(code, score, groups, lanes)
        # At least `low` are more than count, at least `high` fewer.
        low, high = code.counter(_rank(code, lowest)), code.counter(_rank(code, highest) + 1)
        steps, is_found = code.counter(0), code.counter(0)
        with code.loop_while(tirx.And(tirx.EQ(is_found[0], constant(0, "int64")), high[0] - low[0] > 1)):
            first, last = code.let(low[0]), code.let(high[0])
            middle = (_of_rank(code, first) + _of_rank(code, last - 1)) * number(0.5)
            by_value = most(least(_rank(code, middle), last - 1), first + 1)
            rank = code.let(either(steps[0] < _BY_VALUE, by_value, halved(first + last, 1)))
            limit = _of_rank(code, rank)
            found = _tally(code, score, groups, lanes, limit)
            code.set(steps, steps[0] + 1)
            with code.when(found > count):
                code.set(low, rank)
            with code.otherwise():
                code.set(high, rank)
                with code.when(tirx.EQ(found, count)):
                    code.set(is_found, 1)
                    code.set(low, rank)
        limit = _of_rank(code, low[0])
        code.set(threshold, limit)
        code.set(equals, count - _tally(code, score, groups, lanes, limit, above=True))
