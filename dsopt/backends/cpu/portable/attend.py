"""One softmax over picked keys, nodes, and the keys at the tile's own place: `dsopt.ops.sparse_attention.attend` in ONNX."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dsopt.backends.cpu.builder import Value
from dsopt.backends.cpu.functions import FunctionBuilder
from dsopt.backends.cpu.portable.plan import Form, Places
from dsopt.backends.cpu.portable.pyramid import Keys, Level, Slots
from dsopt.backends.cpu.portable.search import Chosen, Cover, Search
from dsopt.sparse_schedule import LEAST_REST


@dataclass(frozen=True)
class Rows:
    """What stands for keys in a softmax: keys (G, t, c, D) and values (G, t, c, E).

    offset: (G, t, c), what is added to logits, -inf for nothing; None for 0.  hidden: (1, t, tile, c) bool, what a query may not see.
    count: (G, t, c), how many keys a row stands for, where that is not in the offset; its value is then their sum.
    """

    key: Value
    value: Value
    size: int
    offset: Value | None = None
    hidden: Value | None = None
    count: Value | None = None


class Attention:
    """Writes the attention of G heads of one schedule. keys, levels, slots: see `pyramid`."""

    def __init__(
        self, f: FunctionBuilder, form: Form, places: Places, keys: Keys, levels: Sequence[Level], slots: Slots
    ) -> None:
        self.f, self.form, self.places = f, form, places
        self.keys, self.levels, self.slots = keys, levels, slots

    def single_rows(self, found: Chosen, is_hidden: bool = False) -> Rows:
        """Return keys that are attended to one by one. is_hidden: some are not seen by all queries of the tile."""
        f, form = self.f, self.form
        key = self.slots.rows(f, self.keys.key, form.head, form.keys, found.index)
        value = self.slots.rows(f, self.keys.value, form.value_head, form.keys, found.index)
        offset: Value | None = None
        if self.keys.bias is not None:
            offset = self.slots.rows(f, self.keys.bias, 0, form.keys, found.index)
        if found.is_valid is not None:
            zero = f.number(0, key) if offset is None else offset
            offset = f.where(found.is_valid, zero, f.number(-math.inf, key))
        hidden: Value | None = None
        if is_hidden:
            own, seen = f.whole(self.places.own[None, :, None]), f.whole(self.places.seen[None, ..., None])
            hidden = f.test("GreaterOrEqual", own, seen)
        return Rows(key, value, found.count, offset, hidden)

    def own_rows(self, search: Search) -> Rows | None:
        """Return the keys behind the tile's prefix; None if there are none."""
        own = self.places.own
        if own.shape[1] == 0:
            return None
        index = search.spread(self.f.whole(np.minimum(own, self.form.keys - 1)[None]))
        is_hidden = bool((own[:, None] >= self.places.seen[..., None]).any())
        return self.single_rows(Chosen(index, None, own.shape[1]), is_hidden)

    def node_rows(self, search: Search, cover: Sequence[Cover], picks: Chosen | None, picked: Rows | None) -> Rows:
        """Return the nodes of a cover, the picked keys taken out."""
        f = self.f
        index, first, size, is_valid = self._joined(search, cover)
        total, key, value = self._totals(cover, index)
        rest = f.expand(total, f.size(search.probe, 0), self.places.count, 1)
        mean = key
        if picks is not None and picked is not None:
            pick = f.unsqueeze(picks.index, 2)
            start, end = f.unsqueeze(first, 3), f.unsqueeze(f.add(first, size), 3)
            inside = f.test("And", f.test("GreaterOrEqual", pick, start), f.test("Less", pick, end))
            taken = f.cast(inside, key.dtype)
            if self.keys.weight is not None:
                weight = self.slots.rows(f, self.keys.weight, 0, self.form.keys, picks.index)
                taken = f.times(taken, f.unsqueeze(weight, 2))
            if picks.is_valid is not None:
                taken = f.times(taken, f.unsqueeze(f.cast(picks.is_valid, key.dtype), 2))
            rest = f.op("Sub", total, f.sum(taken, 3))
            mean = f.op("Sub", key, f.matmul(taken, picked.key))
            value = f.op("Sub", value, f.matmul(taken, picked.value))
        is_any = f.test("Greater", rest, f.times(total, f.number(LEAST_REST, total)))
        if is_valid is not None:
            is_any = f.test("And", is_any, is_valid)
        count = sum(part.nodes.count for part in cover)
        if search.is_certain:
            return self._counted(rest, is_any, total, (key, mean, value), count)
        return self._weighed(rest, is_any, mean, value, count)

    def _counted(self, rest: Value, is_any: Value, total: Value, sums: tuple[Value, Value, Value], count: int) -> Rows:
        """Return nodes with their number of keys, for a softmax whose weights are numbers of keys.

        A node without a key left has the weight 0. Its logit must not be above all others, or these would round to 0: the mean of
        the node with the keys that were picked is below the highest of these.
        """
        f = self.f
        key, mean, value = sums
        is_some = f.unsqueeze(is_any, 3)
        key = f.op("Div", f.where(is_some, mean, key), f.unsqueeze(f.where(is_any, rest, total), 3))
        zero = f.number(0, value)
        return Rows(key, f.where(is_some, value, zero), count, count=f.where(is_any, rest, zero))

    def _weighed(self, rest: Value, is_any: Value, key: Value, value: Value, count: int) -> Rows:
        """Return nodes with the logarithm of their weight."""
        f = self.f
        safe = f.where(is_any, rest, f.number(1, rest))
        is_some, zero = f.unsqueeze(is_any, 3), f.number(0, key)
        key, value = (f.where(is_some, f.op("Div", each, f.unsqueeze(safe, 3)), zero) for each in (key, value))
        return Rows(key, value, count, f.where(is_any, f.op("Log", safe), f.number(-math.inf, rest)))

    def _joined(self, search: Search, cover: Sequence[Cover]) -> tuple[Value, Value, Value, Value | None]:
        """Return of all nodes the row in a table of their levels, the first key, the number of keys, and which are any."""
        f = self.f
        rows, first, sizes, valid = [], [], [], []
        before = 0
        for part in cover:
            level, nodes = self.levels[part.level], part.nodes
            index = search.spread(nodes.index)
            rows.append(f.add(index, f.whole(before)) if before else index)
            first.append(f.times(index, f.whole(level.size)))
            sizes += [level.size] * nodes.count
            valid.append(search.spread(nodes.is_valid or f.constant([[[True]]], torch.bool)))
            before += level.nodes
            if nodes.is_valid is None and not search.is_certain:
                valid[-1] = f.expand(valid[-1], 1, 1, nodes.count)
        is_valid = None if search.is_certain else f.concat(valid, 2)
        return f.concat(rows, 2), f.concat(first, 2), f.whole([[sizes]]), is_valid

    def _totals(self, cover: Sequence[Cover], index: Value) -> tuple[Value, Value, Value]:
        """Return weights (G, t, c) or (1, 1, c), keys and values added up in nodes."""
        f, form = self.f, self.form
        levels = [self.levels[part.level] for part in cover]
        length = sum(level.nodes for level in levels)
        key = self.slots.rows(f, f.concat([each.key for each in levels], 1), form.head, length, index)
        value = self.slots.rows(f, f.concat([each.value for each in levels], 1), form.value_head, length, index)
        weights = [each.weight for each in levels if each.weight is not None]
        if weights:
            return self.slots.rows(f, f.concat(weights, 1), 0, length, index), key, value
        sizes = [part.nodes.count * [level.size] for part, level in zip(cover, levels, strict=True)]
        return f.constant([[[size for part in sizes for size in part]]], key.dtype), key, value

    def attend(self, query: Value, rows: Sequence[Rows]) -> Value:
        """Return the softmax-weighted values (G, t, tile, E) of (G, t, tile, D) scaled queries, 0 for a query without any key."""
        f = self.f
        value = f.concat([part.value for part in rows], 2)
        if all(part.offset is None and part.hidden is None for part in rows):
            key = f.concat([part.key for part in rows], 2)
            return self._shares(query, key, value, rows)
        logits = f.concat([self._logits(query, part) for part in rows], 3)
        lowest = f.number(-math.inf, logits)
        highest = f.op("ReduceMax", logits, f.vector([3]), keepdims=1)
        result = f.matmul(f.op("Softmax", logits, axis=-1), value)
        return f.where(f.test("Equal", highest, lowest), f.number(0, result), result)

    def _shares(self, query: Value, key: Value, value: Value, rows: Sequence[Rows]) -> Value:
        """Attend where all rows are seen, and a row stands for as many keys as `count` says: P V / P count."""
        f = self.f
        shares = f.op("Softmax", f.matmul(query, f.transpose(key, 0, 1, 3, 2)), axis=-1)
        counts = [part.count or f.expand(f.constant([[[1]]], key.dtype), f.size(key, 0), self.places.count, part.size)
                  for part in rows]  # fmt: skip
        return f.op("Div", f.matmul(shares, value), f.matmul(shares, f.unsqueeze(f.concat(counts, 2), 3)))

    def _logits(self, query: Value, part: Rows) -> Value:
        f = self.f
        logits = f.matmul(query, f.transpose(part.key, 0, 1, 3, 2))
        if part.offset is not None:
            logits = f.add(logits, f.unsqueeze(part.offset, 2))
        return logits if part.hidden is None else f.where(part.hidden, f.number(-math.inf, logits), logits)
