"""Scores of rows for one probe: dot products, eight rows at a time."""

from __future__ import annotations

from collections.abc import Callable

from dsopt.backends.cpu.sparse.code import (
    INFINITY,
    Code,
    Memory,
    divided,
    doubled,
    either,
    narrow,
    number,
    rounded_up,
    same,
    wide,
)
from dsopt.backends.cpu.sparse.form import Form
from dsopt.backends.cpu.sparse.vectors import LANES, kept, sums
from dsopt.backends.tir.tvm_adapter import Expr, PrimFunc, constant, tirx
from dsopt.sparse_schedule import LEAF


def score_nodes(form: Form) -> PrimFunc:
    """Make dsopt_score_nodes: the score of each listed node's mean key, with the logarithm of its mean weight.

    index: up to a multiple of 8 with any nodes; their scores are set to -inf.  base: the first node of the level.  Nodes that have a
    key in near_low <= key < near_high get +inf.
    """
    code = Code("dsopt_score_nodes")
    node_key, node_weight, node_log, probe = code.floats("node_key", "node_weight", "node_log", "probe")
    (index,) = code.integers("index")
    (score,) = code.floats("score")
    size, level, base, near_low, near_high = code.counts("size", "level", "base", "near_low", "near_high")
    part = code.let(number(1.0) / tirx.Cast("float32", doubled(LEAF, level)))
    shift = same(code.let(narrow(level)), LANES)
    low, high = (same(code.let(narrow(each)), LANES) for each in (near_low, near_high))
    with code.loop(divided(rounded_up(size, LANES), LANES)) as i:
        first = code.let(i * LANES)
        rows = [code.let((base + wide(index[first + n])) * form.head) for n in range(LANES)]
        dots = _dots(code, form.head, node_key, rows.__getitem__, probe)
        if form.has_bias:
            dots = _weighted(code, dots, score, first, (node_weight, node_log), (index, base))
        else:
            dots = dots * same(part, LANES)
        nodes = code.let(index.vector(first, LANES))
        leaf = _all(LEAF)
        starts = code.let(tirx.shift_left(nodes * leaf, shift))
        ends = tirx.shift_left((nodes + _all(1)) * leaf, shift)
        is_near = tirx.And(tirx.And(starts < high, ends > low), dots > same(number(-INFINITY), LANES))
        code.set(score, _cut(kept(tirx.Not(is_near), dots, INFINITY, LANES), first, size), first)
    return code.build()


def _all(value: int) -> Expr:
    return same(constant(value, "int32"), LANES)


def _weighted(
    code: Code, dots: Expr, score: Memory, first: Expr, of_node: tuple[Memory, Memory], nodes: tuple[Memory, Expr]
) -> Expr:
    """Return the scores of nodes whose keys have weights."""
    (weight, log), (index, base) = of_node, nodes
    code.set(score, dots, first)
    with code.loop(LANES) as n:
        node = code.let(base + wide(index[first + n]))
        total = code.let(weight[node])
        mean = code.let(score[first + n] / either(total > number(0.0), total, number(1.0)))
        code.set(score, either(total > number(0.0), mean + log[node], number(-INFINITY)), first + n)
    return code.let(score.vector(first, LANES))


def score_keys(form: Form) -> PrimFunc:
    """Make dsopt_score_keys: the scores of the keys of the listed leaves, and the list of those keys.

    A key in near_low <= key < near_high that is not masked gets +inf.
    """
    code = Code("dsopt_score_keys")
    key, bias, probe = code.floats("key", "bias", "probe")
    leaves, index = code.integers("leaves", "index")
    (score,) = code.floats("score")
    size, row, near_low, near_high = code.counts("size", "row", "near_low", "near_high")
    low, high = (same(code.let(narrow(each)), LANES) for each in (near_low, near_high))
    with code.loop(size) as i:
        first = code.let(wide(leaves[i]) * LEAF)
        start = code.let(first * row)
        dots = _dots(code, form.head, key, lambda n, start=start: start + row * n, probe)  # type: ignore[misc]
        keys = code.let(same(narrow(first), LANES) + tirx.Ramp(constant(0, "int32"), constant(1, "int32"), LANES))
        code.set(index, keys, i * LEAF)
        is_near = tirx.And(keys < high, keys >= low)
        if form.has_bias:
            added = code.let(bias.vector(first, LEAF))
            dots = code.let(dots + added)
            is_near = tirx.And(is_near, added > same(number(-INFINITY), LANES))
        code.set(score, kept(tirx.Not(is_near), dots, INFINITY, LANES), i * LEAF)
    return code.build()


def _dots(code: Code, length: int, rows: Memory, start: Callable[[int], Expr], probe: Memory) -> Expr:
    held: list[Expr] = []
    for at in range(0, length, LANES):
        part = code.let(probe.vector(at, LANES))
        products = [rows.vector(start(n) + at, LANES) * part for n in range(LANES)]
        held = [code.let(a + b) for a, b in zip(products, held, strict=True)] if held else products
        held = [code.let(each) for each in held]
    return code.let(sums(code, held))


def _cut(scores: Expr, first: Expr, size: Expr) -> Expr:
    """Return scores with -inf behind the end of the list."""
    lane = tirx.Ramp(narrow(first), constant(1, "int32"), LANES)
    return kept(lane < same(narrow(size), LANES), scores, -INFINITY, LANES)
