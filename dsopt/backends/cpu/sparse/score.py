"""Scores of rows for one probe: dot products, as many rows at a time as a vector has lanes."""

from __future__ import annotations

from dsopt.backends.cpu.sparse.code import (
    INFINITY,
    Code,
    Memory,
    divided,
    doubled,
    either,
    least,
    narrow,
    number,
    rounded_up,
    same,
    wide,
)
from dsopt.backends.cpu.sparse.form import Form
from dsopt.backends.cpu.sparse.vectors import kept, pieces, sums
from dsopt.backends.tir.tvm_adapter import Expr, PrimFunc, constant, dtype_of, tirx
from dsopt.sparse_schedule import LEAF


def score_nodes(form: Form) -> PrimFunc:
    """Make dsopt_score_nodes: the score of each listed node's mean key, with the logarithm of its mean weight.

    index: up to a multiple of the lanes with any nodes; they score -inf.  base: the first node of the level.  Nodes that have a
    key in near_low <= key < near_high get +inf.
    """
    code, lanes = Code("dsopt_score_nodes"), form.level.lanes
    node_key, node_weight, node_log, probe = code.floats("node_key", "node_weight", "node_log", "probe")
    (index,) = code.integers("index")
    (score,) = code.floats("score")
    size, level, base, near_low, near_high = code.counts("size", "level", "base", "near_low", "near_high")
    part = code.let(number(1.0) / tirx.Cast("float32", doubled(LEAF, level)))
    shift = same(code.let(narrow(level)), lanes)
    low, high = (same(code.let(narrow(each)), lanes) for each in (near_low, near_high))
    with code.loop(divided(rounded_up(size, lanes), lanes)) as i:
        first = code.let(i * lanes)
        rows = [code.let((base + wide(index[first + n])) * form.head) for n in range(lanes)]
        dots = _dots(code, form, node_key, rows, probe)
        if form.has_bias:
            dots = _weighted(code, dots, score, first, (node_weight, node_log), (index, base), lanes)
        else:
            dots = dots * same(part, lanes)
        nodes = code.let(index.vector(first, lanes))
        leaf = _all(LEAF, lanes)
        starts = code.let(tirx.shift_left(nodes * leaf, shift))
        ends = tirx.shift_left((nodes + _all(1, lanes)) * leaf, shift)
        is_near = tirx.And(tirx.And(starts < high, ends > low), dots > same(number(-INFINITY), lanes))
        code.set(score, _cut(kept(tirx.Not(is_near), dots, INFINITY, lanes), first, size, lanes), first)
    return code.build()


def _all(value: int, lanes: int) -> Expr:
    return same(constant(value, "int32"), lanes)


def _weighted(
    code: Code, dots: Expr, score: Memory, first: Expr, of_node: tuple[Memory, Memory], nodes: tuple[Memory, Expr], lanes: int
) -> Expr:  # fmt: skip
    """Return the scores of nodes whose keys have weights."""
    (weight, log), (index, base) = of_node, nodes
    code.set(score, dots, first)
    with code.loop(lanes) as n:
        node = code.let(base + wide(index[first + n]))
        total = code.let(weight[node])
        mean = code.let(score[first + n] / either(total > number(0.0), total, number(1.0)))
        code.set(score, either(total > number(0.0), mean + log[node], number(-INFINITY)), first + n)
    return code.let(score.vector(first, lanes))


def score_keys(form: Form) -> PrimFunc:
    """Make dsopt_score_keys: the scores of the keys of the listed leaves, and the list of those keys.

    A key in near_low <= key < near_high that is not masked gets +inf.
    """
    code, lanes = Code("dsopt_score_keys"), form.level.lanes
    key, bias, probe = code.floats("key", "bias", "probe")
    leaves, index = code.integers("leaves", "index")
    (score,) = code.floats("score")
    size, row, near_low, near_high = code.counts("size", "row", "near_low", "near_high")
    low, high = (same(code.let(narrow(each)), lanes) for each in (near_low, near_high))
    together = lanes // LEAF
    with code.loop(divided(rounded_up(size, together), together)) as i:
        # Where the last leaf has no fellow, it is its own, and counts once.
        numbers = [code.let(wide(leaves[least(i * together + n, size - 1)])) for n in range(together)]
        firsts = [code.let(each * LEAF) for each in numbers]
        rows = [code.let((first + n) * row) for first in firsts for n in range(LEAF)]
        dots = _dots(code, form, key, rows, probe)
        ramp = tirx.Ramp(constant(0, "int32"), constant(1, "int32"), LEAF)
        keys = code.let(_joined([code.let(same(narrow(first), LEAF) + ramp) for first in firsts]))
        code.set(index, keys, i * lanes)
        is_near = tirx.And(keys < high, keys >= low)
        if form.has_bias:
            added = code.let(_joined([code.let(bias.vector(first, LEAF)) for first in firsts]))
            dots = code.let(dots + added)
            is_near = tirx.And(is_near, added > same(number(-INFINITY), lanes))
        found = kept(tirx.Not(is_near), dots, INFINITY, lanes)
        code.set(score, _cut(found, code.let(i * lanes), size * LEAF, lanes), i * lanes)
    return code.build()


def _joined(vectors: list[Expr]) -> Expr:
    """Return one vector with the lanes of all, one behind the other."""
    if len(vectors) == 1:
        return vectors[0]
    count = sum(int(dtype_of(each).partition("x")[2]) for each in vectors)
    return tirx.Shuffle(vectors, [constant(lane, "int32") for lane in range(count)])


def _dots(code: Code, form: Form, memory: Memory, starts: list[Expr], probe: Memory) -> Expr:
    """Return the products of as many rows as there are lanes with the probe. starts: where rows begin."""
    lanes = form.level.lanes
    held: list[Expr] = []
    for at, width in pieces(form.head, lanes):
        part = code.let(probe.vector(at, width))
        products = [code.let(memory.vector(start + at, width) * part) for start in starts]
        if width < lanes:
            rest = code.let(same(number(0.0), lanes - width))
            products = [_joined([each, rest]) for each in products]
        held = [code.let(a + b) for a, b in zip(products, held, strict=True)] if held else products
    return code.let(sums(code, [code.let(each) for each in held]))


def _cut(scores: Expr, first: Expr, size: Expr, lanes: int) -> Expr:
    """Return scores with -inf behind the end of the list."""
    lane = tirx.Ramp(narrow(first), constant(1, "int32"), lanes)
    return kept(lane < same(narrow(size), lanes), scores, -INFINITY, lanes)
