"""Keys and values added up in a binary pyramid: tables in which a node is a row, whichever head it belongs to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dsopt.backends.cpu.builder import Value
from dsopt.backends.cpu.functions import FunctionBuilder
from dsopt.backends.cpu.portable.plan import Form
from dsopt.sparse_schedule import LEAF


@dataclass(frozen=True)
class Keys:
    """Keys and what belongs to them, for P heads of each of B examples.

    key, value: (B P, S, D) and (B P, S, E).  bias, weight: (B P, S), what is added to scores and its exponential; None for 0 and 1.
    """

    key: Value
    value: Value
    bias: Value | None
    weight: Value | None


@dataclass(frozen=True)
class Level:
    """Nodes of LEAF * 2^level keys. weight, key, value: sums (B P, N), (B P, N, D) and (B P, N, E), weight None for the node's size.

    mean: (B P, N, D), of the keys.  log_weight: (B P, N), the logarithm of the mean weight of keys that are not masked, None for 0.
    """

    nodes: int
    size: int
    weight: Value | None
    key: Value
    value: Value
    mean: Value
    log_weight: Value | None


@dataclass(frozen=True)
class Slots:
    """Which of the P heads of a table G heads read. slot: (G, 1, 1), the table's number, among those of all examples.

    heads: for each of the G / B heads of an example, None where they are the P heads themselves.
    """

    slot: Value
    heads: tuple[int, ...] | None
    tables: int

    def rows(self, f: FunctionBuilder, table: Value, width: int, length: int, index: Value) -> Value:
        """Return rows (G, t, c, width) of a table (B P, length, width) at indices (G or 1, t, c); without a last axis if width is 0."""
        place = f.add(index, f.times(self.slot, f.whole(length)))
        return f.gather(f.reshape(table, -1, width) if width else f.reshape(table, -1), place)

    def whole(self, f: FunctionBuilder, table: Value, *shape: int) -> Value:
        """Return a table (B P, *shape) for the G heads."""
        if self.heads is None:
            return table
        some = f.gather(f.reshape(table, -1, self.tables, *shape), f.vector(self.heads), axis=1)
        return f.reshape(some, -1, *shape)


def make_slots(f: FunctionBuilder, form: Form, members: Sequence[int], batch: Value) -> Slots:
    """Return what some heads of queries read. batch: B, a vector of one element."""
    heads = tuple(number // (form.heads // form.tables) for number in members)
    zero, one = f.constant(0, torch.int64), f.constant(1, torch.int64)
    example = f.op("Range", zero, f.op("Squeeze", batch), one)
    slot = f.add(f.unsqueeze(f.times(example, f.whole(form.tables)), 1), f.whole([heads]))
    is_same = heads == tuple(range(form.tables))
    return Slots(f.reshape(slot, -1, 1, 1), None if is_same else heads, form.tables)


def load_keys(f: FunctionBuilder, form: Form, key: Value, value: Value, bias: Value | None, batch: Value) -> Keys:
    """Return the keys as tables; a head of keys is there once for each head of queries if a bias tells these apart."""
    repeats = form.tables // form.key_heads
    sides = []
    for side, width in ((key, form.head), (value, form.value_head)):
        whole = f.cast(side, form.work_dtype)
        if repeats > 1:
            whole = f.expand(f.unsqueeze(whole, 2), 1, 1, repeats, 1, 1)
        sides.append(f.reshape(whole, -1, form.keys, width))
    if bias is None or form.bias is None:
        return Keys(sides[0], sides[1], None, None)
    added = f.expand(_additive(f, bias, form), batch, form.tables, 1, form.keys)
    added = f.reshape(added, -1, form.keys)
    return Keys(sides[0], sides[1], added, f.op("Exp", added))


def _additive(f: FunctionBuilder, bias: Value, form: Form) -> Value:
    """Return the bias in floats, its highest number in each head 0."""
    lowest = f.constant(-math.inf, form.work_dtype)
    if bias.dtype == torch.bool:
        return f.where(bias, f.constant(0, form.work_dtype), lowest)
    added = f.cast(bias, form.work_dtype)
    highest = f.op("ReduceMax", added, f.vector([3]), keepdims=1)
    return f.op("Sub", added, f.where(f.test("Equal", highest, lowest), f.number(0, added), highest))


def build(f: FunctionBuilder, form: Form, keys: Keys, top: int) -> list[Level]:
    """Return the levels from leaves to `top`."""
    count, whole = form.keys // LEAF, form.keys // LEAF * LEAF
    sides = [keys.key, keys.value, *([] if keys.weight is None else [keys.weight])]
    if whole < form.keys:
        sides = [f.slice(each, 1, 0, whole) for each in sides]
    weight = sides[2] if keys.weight is not None else None
    key, value = (each if weight is None else f.times(each, f.unsqueeze(weight, 2)) for each in sides[:2])
    present = None if weight is None else f.cast(f.test("Greater", weight, f.number(0, weight)), weight.dtype)
    found: list[Level] = []
    size, group = LEAF, LEAF
    for level in range(top + 1):
        if level:
            if count % 2:  # a last node without a partner is left out
                key, value = f.slice(key, 1, 0, count - 1), f.slice(value, 1, 0, count - 1)
                weight, present = (each and f.slice(each, 1, 0, count - 1) for each in (weight, present))
            count, size, group = count // 2, size * 2, 2
        key, value = _grouped(f, key, count, group, form.head), _grouped(f, value, count, group, form.value_head)
        weight, present = (None if each is None else _grouped(f, each, count, group) for each in (weight, present))
        found.append(_level(f, count, size, weight, present, key, value))
    return found


def _grouped(f: FunctionBuilder, sums: Value, count: int, group: int, *width: int) -> Value:
    return f.sum(f.reshape(sums, -1, count, group, *width), 2)


def _level(
    f: FunctionBuilder, count: int, size: int, weight: Value | None, present: Value | None, key: Value, value: Value
) -> Level:
    if weight is None or present is None:
        return Level(count, size, None, key, value, f.op("Div", key, f.number(size, key)), None)
    is_any = f.test("Greater", weight, f.number(0, weight))
    safe = f.where(is_any, weight, f.number(1, weight))
    mean = f.op("Div", key, f.unsqueeze(safe, 2))
    log_weight = f.op("Log", f.op("Div", safe, f.op("Max", present, f.number(1, present))))
    return Level(count, size, weight, key, value, mean, f.where(is_any, log_weight, f.number(-math.inf, weight)))
