"""The pyramid of one head: sums of keys and values over nodes, their weights, and the logarithm of the mean weight."""

from __future__ import annotations

from dsopt.backends.cpu.sparse.code import INFINITY, Code, Memory, divided, either, halved, most, number, same
from dsopt.backends.cpu.sparse.form import Form, Numbers
from dsopt.backends.cpu.sparse.vectors import LANES, exponential, logarithm, pieces
from dsopt.backends.tir.tvm_adapter import Expr, PrimFunc, tirx
from dsopt.sparse_schedule import LEAF

_SMALLEST = 2.0**-126


def pool(form: Form) -> PrimFunc:
    """Make dsopt_pool: fill a pyramid. A node is a row of sums; levels lie one behind the other, leaves first."""
    code = Code("dsopt_pool")
    key, value, bias, weight = code.floats("key", "value", "bias", "weight")
    node_key, node_value, node_weight, node_count, node_log = code.floats(
        "node_key", "node_value", "node_weight", "node_count", "node_log"
    )
    (held,) = code.integers("numbers", dtype="int64")
    numbers = Numbers(held)
    if form.has_bias:
        _weights(code, numbers["keys"], bias, weight)
        _leaf_weights(code, numbers["leaves"], weight, node_weight, node_count)
    weights = weight if form.has_bias else None
    _leaves(code, form, numbers["leaves"], (key, numbers["key_row"], form.head, node_key), weights)
    _leaves(code, form, numbers["leaves"], (value, numbers["value_row"], form.value_head, node_value), weights)
    with code.loop(numbers["levels"], 1) as level:
        below, here = code.let(numbers.base(level - 1)), code.let(numbers.base(level))
        count = code.let(halved(numbers["leaves"], level))
        _pairs(code, form, node_key, form.head, below, here, count)
        _pairs(code, form, node_value, form.value_head, below, here, count)
        if form.has_bias:
            with code.loop(count) as i:
                for each in (node_weight, node_count):
                    code.set(each, each[below + i * 2] + each[below + i * 2 + 1], here + i)
    if form.has_bias:
        with code.loop(numbers.base(numbers["levels"])) as i:
            total = code.let(node_weight[i])
            mean = code.let(most(total, number(_SMALLEST)) / most(node_count[i], number(1.0)))
            found = logarithm(code, mean)
            code.set(node_log, either(total > number(0.0), found, number(-INFINITY)), i)
    return code.build()


def _weights(code: Code, keys: Expr, bias: Memory, weight: Memory) -> None:
    whole = code.let(divided(keys, LANES) * LANES)
    with code.loop(divided(keys, LANES)) as i:
        code.set(weight, exponential(code, code.let(bias.vector(i * LANES, LANES)), LANES), i * LANES)
    with code.loop(keys, whole) as i:
        code.set(weight, exponential(code, code.let(bias[i]), 1), i)


def _leaf_weights(code: Code, leaves: Expr, weight: Memory, node_weight: Memory, node_count: Memory) -> None:
    with code.loop(leaves) as i:
        total, count = number(0.0), number(0.0)
        for n in range(LEAF):
            each = code.let(weight[i * LEAF + n])
            total = total + each
            count = count + tirx.Cast("float32", each > number(0.0))
        code.set(node_weight, total, i)
        code.set(node_count, count, i)


def _leaves(
    code: Code, form: Form, leaves: Expr, rows: tuple[Memory, Expr, int, Memory], weight: Memory | None
) -> None:
    source, stride, length, target = rows
    stride = code.let(stride)
    with code.loop(leaves) as i:
        for at, lanes in pieces(length, form.level.lanes):
            total: Expr = None
            for n in range(LEAF):
                each = source.vector((i * LEAF + n) * stride + at, lanes)
                if weight is not None:
                    each = each * same(weight[i * LEAF + n], lanes)
                total = each if total is None else total + each
            code.set(target, total, i * length + at)


def _pairs(code: Code, form: Form, node: Memory, length: int, below: Expr, here: Expr, count: Expr) -> None:
    with code.loop(count) as i:
        first = code.let((below + i * 2) * length)
        for at, lanes in pieces(length, form.level.lanes):
            code.set(
                node, node.vector(first + at, lanes) + node.vector(first + length + at, lanes), (here + i) * length + at
            )
