"""The rows that a tile attends to, in panels: picked keys, nodes less picked keys, and the keys at the tile's own place."""

from __future__ import annotations

from dsopt.backends.cpu.sparse.code import INFINITY, Code, Memory, doubled, either, most, narrow, number, same, wide
from dsopt.backends.cpu.sparse.form import Form, Numbers
from dsopt.backends.cpu.sparse.search import COVERED, OWN, PICKED, ROWS, most_zero
from dsopt.backends.cpu.sparse.vectors import logarithm, pieces
from dsopt.backends.tir.tvm_adapter import Expr, PrimFunc, tirx
from dsopt.runtime.sparse_layout import ZERO
from dsopt.sparse_schedule import LEAF, LEAST_REST

_AT_ONCE = 8
"""Vectors of a row that are added up together, in registers."""


def copy_rows(form: Form) -> PrimFunc:
    """Make dsopt_copy_rows: keys low <= key < high to the panels from `start` on, and some behind them to fill up a block."""
    code = Code("dsopt_copy_rows")
    key, value, bias, settings, panel_key, panel_value, offset = code.floats(
        "key", "value", "bias", "settings", "panel_key", "panel_value", "offset"
    )
    key_row, value_row, low, high, start = code.counts("key_row", "value_row", "low", "high", "start")
    count = code.let(most(high - low, 0))
    for source, stride, length, panel in (
        (key, key_row, form.head, panel_key), (value, value_row, form.value_head, panel_value)
    ):  # fmt: skip
        with code.loop(count) as i:
            row, target = code.let((low + i) * stride), code.let((start + i) * length)
            for at, lanes in pieces(length, form.level.lanes):
                code.set(panel, source.vector(row + at, lanes), target + at)
    # A block of logits may have rows behind the end: nobody reads them, and the first row again is as fast as any to compute.
    with code.loop(form.level.rows) as i:
        for at, lanes in pieces(form.head, form.level.lanes):
            code.set(panel_key, panel_key.vector(at, lanes), (start + count + i) * form.head + at)
    with code.loop(count) as i:
        code.set(offset, bias[low + i] if form.has_bias else settings[ZERO], start + i)
    with code.loop(form.level.rows) as i:
        code.set(offset, number(-INFINITY), start + count + i)
    return code.build()


def choose_rows(form: Form) -> PrimFunc:
    """Make dsopt_choose_rows: fill the panels of a tile from what was picked and the cover; the number of rows goes to state."""
    code = Code("dsopt_choose_rows")
    names = ("key", "value", "bias", "weight", "node_key", "node_value", "node_weight")
    key, value, bias, weight, node_key, node_value, node_weight = code.floats(*names)
    settings, panel_key, panel_value, offset = code.floats("settings", "panel_key", "panel_value", "offset")
    picked, cover_first, cover_level, cover_index, state = code.integers(
        "picked", "cover_first", "cover_level", "cover_index", "state"
    )
    (held,) = code.integers("numbers", dtype="int64")
    low, high = code.counts("low", "high")
    numbers = Numbers(held)
    count = code.let(wide(state[PICKED]))
    passed, row = code.counter(0), code.counter(count)
    with code.loop(wide(state[COVERED])) as i:
        level = code.let(wide(cover_level[i]))
        node = code.let(numbers.base(level) + wide(cover_index[i]))
        begin = code.let(passed[0])
        last = code.let(cover_first[i] + narrow(doubled(LEAF, level)))
        taken = code.registers("float32", [number(0.0)])
        with code.loop_while(tirx.And(passed[0] < count, picked[passed[0]] < last)):
            one = code.let(wide(picked[passed[0]]))
            code.set(offset, bias[one] if form.has_bias else number(0.0), passed[0])
            code.set(taken, taken[0] + (weight[one] if form.has_bias else number(1.0)))
            code.set(passed, passed[0] + 1)
        total = code.let(node_weight[node] if form.has_bias else tirx.Cast("float32", doubled(LEAF, level)))
        rest = code.let(total - taken[0])
        is_any = code.let(rest > total * number(LEAST_REST))
        safe = code.let(either(is_any, rest, number(1.0)))
        part = code.let(either(is_any, number(1.0) / safe, number(0.0)))
        span = (begin, code.let(passed[0]))
        weights = weight if form.has_bias else None
        for source, stride, sums, panel, length in (
            (key, numbers["key_row"], node_key, panel_key, form.head),
            (value, numbers["value_row"], node_value, panel_value, form.value_head),
        ):
            _rest(
                code,
                form,
                (source, code.let(stride), sums, panel, length),
                weights,
                (picked, *span),
                node,
                row[0],
                part,
            )
        with code.when(is_any):
            code.set(offset, logarithm(code, safe), row[0])
            code.set(row, row[0] + 1)
    code.set(state, narrow(row[0]), OWN)
    code.call(
        "dsopt_copy_rows", key.at(0), value.at(0), bias.at(0), settings.at(0), panel_key.at(0), panel_value.at(0), offset.at(0),
        numbers["key_row"], numbers["value_row"], low, high, row[0],
    )  # fmt: skip
    code.set(state, narrow(row[0] + most_zero(high - low)), ROWS)
    return code.build()


def _rest(
    code: Code, form: Form, rows: tuple[Memory, Expr, Memory, Memory, int], weight: Memory | None,
    picks: tuple[Memory, Expr, Expr], node: Expr, row: Expr, part: Expr,
) -> None:  # fmt: skip
    """Copy the picked rows of one node to their places, and the mean of the node's other rows to `row`."""
    source, stride, sums, panel, length = rows
    picked, begin, end = picks
    found = pieces(length, form.level.lanes)
    for group in (found[at : at + _AT_ONCE] for at in range(0, len(found), _AT_ONCE)):
        held = [code.registers(f"float32x{lanes}", [sums.vector(node * length + at, lanes)]) for at, lanes in group]
        with code.loop(end, begin) as j:
            one = code.let(wide(picked[j]))
            start, target = code.let(one * stride), code.let(j * length)
            for (at, lanes), rest in zip(group, held, strict=True):
                each = code.let(source.vector(start + at, lanes))
                code.set(panel, each, target + at)
                taken = each if weight is None else each * same(weight[one], lanes)
                code.set(rest, rest[0] - taken)
        for (at, lanes), rest in zip(group, held, strict=True):
            code.set(panel, rest[0] * same(part, lanes), row * length + at)
