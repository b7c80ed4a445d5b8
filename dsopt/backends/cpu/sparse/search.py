"""Which keys a tile attends to one by one, and the nodes that stand for all others: see dsopt/ops/sparse_attention/search.py."""

from __future__ import annotations

from dsopt.backends.cpu.sparse.code import (
    Code,
    Memory,
    divided,
    doubled,
    halved,
    integer,
    narrow,
    rounded_up,
    same,
    wide,
)
from dsopt.backends.cpu.sparse.form import Form, Numbers
from dsopt.backends.cpu.sparse.vectors import LANES
from dsopt.backends.tir.tvm_adapter import Expr, PrimFunc, constant, tirx
from dsopt.runtime.sparse_layout import MOST_LANES
from dsopt.sparse_schedule import LEAF, OPENED

KEPT, PICKED, COVERED, ROWS, OWN = range(5)
"""Places in `state`: nodes kept from a level, keys picked, nodes of the cover, rows of the panels, the first row that is masked."""

_BIT = 1


def search() -> PrimFunc:
    """Make dsopt_search: picked keys in ascending order, and how many in state."""
    code = Code("dsopt_search")
    key, bias, node_key, node_weight, node_log, probe, score = code.floats(
        "key", "bias", "node_key", "node_weight", "node_log", "probe", "score"
    )
    listed, chosen, picked, state = code.integers("listed", "kept", "picked", "state")
    (held,) = code.integers("numbers", dtype="int64")
    prefix, near_low, near_high = code.counts("prefix", "near_low", "near_high")
    numbers = Numbers(held)
    size = code.counter(0)
    start = code.let(numbers["first"])
    with code.loop(start + 1) as step:
        level = code.let(start - step)
        with code.when(tirx.EQ(step, integer(0))):
            _all_of(code, listed, size, halved(prefix, level))
        with code.otherwise():
            code.set(size, 0)
            _children(code, chosen, listed, size, wide(state[KEPT]))
            _orphan(code, listed, size, halved(prefix, level))
        _fill(code, listed, size[0])
        code.call(
            "dsopt_score_nodes", node_key.at(0), node_weight.at(0), node_log.at(0), probe.at(0), listed.at(0), score.at(0),
            size[0], level, numbers.base(level), near_low, near_high,
        )  # fmt: skip
        code.call(
            "dsopt_best", score.at(0), listed.at(0), chosen.at(0), state.at(0), size[0], numbers["beam"], integer(KEPT)
        )
    found = code.let(wide(state[KEPT]))
    code.call(
        "dsopt_score_keys", key.at(0), bias.at(0), probe.at(0), chosen.at(0), listed.at(0), score.at(0),
        found, numbers["key_row"], near_low, near_high,
    )  # fmt: skip
    code.call(
        "dsopt_best",
        score.at(0),
        listed.at(0),
        picked.at(0),
        state.at(0),
        found * LEAF,
        numbers["picks"],
        integer(PICKED),
    )
    return code.build()


def cover(form: Form) -> PrimFunc:
    """Make dsopt_cover: the nodes that together have every key of the prefix once, in ascending order, and how many in state."""
    code = Code("dsopt_cover")
    node_key, node_weight, node_log, probe, score = code.floats("node_key", "node_weight", "node_log", "probe", "score")
    listed, chosen, first, level_of, index_of, state = code.integers(
        "listed", "kept", "cover_first", "cover_level", "cover_index", "state"
    )
    (held,) = code.integers("numbers", dtype="int64")
    (prefix,) = code.counts("prefix")
    numbers = Numbers(held)
    size, count = code.counter(0), code.counter(0)
    top, fine = code.let(numbers["top"]), code.let(numbers["fine"])
    with code.loop(top + 1) as step:
        level = code.let(top - step)
        with code.when(tirx.EQ(step, integer(0))):
            _all_of(code, listed, size, halved(prefix, level))
        with code.otherwise():
            code.set(size, 0)
            with code.when(level >= fine):
                _children(code, chosen, listed, size, wide(state[KEPT]))
            _orphan(code, listed, size, halved(prefix, level))
        code.set(state, constant(0, "int32"), KEPT)
        with code.when(level > fine):
            _fill(code, listed, size[0])
            code.call(
                "dsopt_score_nodes", node_key.at(0), node_weight.at(0), node_log.at(0), probe.at(0), listed.at(0), score.at(0),
                size[0], level, numbers.base(level), integer(0), integer(-1),
            )  # fmt: skip
            code.call(
                "dsopt_best",
                score.at(0),
                listed.at(0),
                chosen.at(0),
                state.at(0),
                size[0],
                integer(OPENED),
                integer(KEPT),
            )
        _emit(code, (listed, size[0]), (chosen, wide(state[KEPT])), level, (first, level_of, index_of), count)
    code.set(state, narrow(count[0]), COVERED)
    return code.build()


def _all_of(code: Code, listed: Memory, size: Memory, count: Expr) -> None:
    with code.loop(divided(rounded_up(count, LANES), LANES)) as i:
        code.set(listed, tirx.Ramp(narrow(i * LANES), constant(1, "int32"), LANES), i * LANES)
    code.set(size, count)


def _children(code: Code, chosen: Memory, listed: Memory, size: Memory, count: Expr) -> None:
    with code.loop(count) as i:
        node = code.let(chosen[i] * 2)
        code.set(listed, node, i * 2)
        code.set(listed, node + 1, i * 2 + 1)
    code.set(size, count * 2)


def _orphan(code: Code, listed: Memory, size: Memory, complete: Expr) -> None:
    complete = code.let(complete)
    with code.when(tirx.EQ(tirx.bitwise_and(complete, integer(_BIT)), integer(1))):
        code.set(listed, narrow(complete - 1), size[0])
        code.set(size, size[0] + 1)


def _fill(code: Code, listed: Memory, size: Expr) -> None:
    """Put a node behind the list, as often as a vector has lanes, for what reads it in vectors."""
    code.set(listed, same(constant(0, "int32"), MOST_LANES), size)


def _emit(
    code: Code, nodes: tuple[Memory, Expr], opened: tuple[Memory, Expr], level: Expr, targets: tuple[Memory, ...], count: Memory
) -> None:  # fmt: skip
    """Insert the nodes that were not opened into the cover by their first keys."""
    (listed, size), (chosen, limit) = nodes, opened
    first, level_of, index_of = targets
    passed = code.counter(0)
    limit = code.let(limit)
    with code.loop(size) as i:
        node = code.let(listed[i])
        is_opened = tirx.And(passed[0] < limit, tirx.EQ(chosen[passed[0]], node))
        with code.when(is_opened):
            code.set(passed, passed[0] + 1)
        with code.otherwise():
            begin = code.let(narrow(doubled(wide(node) * LEAF, level)))
            place = code.counter(count[0])
            with code.loop_while(tirx.And(place[0] > 0, first[most_zero(place[0] - 1)] > begin)):
                for each in targets:
                    code.set(each, each[place[0] - 1], place[0])
                code.set(place, place[0] - 1)
            code.set(first, begin, place[0])
            code.set(level_of, narrow(level), place[0])
            code.set(index_of, node, place[0])
            code.set(count, count[0] + 1)


def most_zero(place: Expr) -> Expr:
    """Return a place that may be read even where both sides of a condition are computed."""
    return tirx.Max(place, integer(0))
