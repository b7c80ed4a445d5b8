"""Heads that look at all keys, so many queries at a time that the scores of long sequences are never all there."""

from __future__ import annotations

import math

import numpy as np

from dsopt.backends.cpu.builder import Body, Value
from dsopt.backends.cpu.functions import FunctionBuilder
from dsopt.backends.cpu.portable.plan import Form
from dsopt.backends.cpu.portable.pyramid import Keys, Slots

SCORES = 1 << 20
"""Scores of one head that are there at a time, at most."""


def attend(f: FunctionBuilder, form: Form, query: Value, keys: Keys, slots: Slots) -> Value:
    """Return attention (G, T, E) of (G, T, D) scaled queries."""
    key, value = slots.whole(f, keys.key, form.keys, form.head), slots.whole(f, keys.value, form.keys, form.value_head)
    bias = None if keys.bias is None else f.unsqueeze(slots.whole(f, keys.bias, form.keys), 1)
    key = f.transpose(key, 0, 2, 1)
    step = max(1, min(form.queries, SCORES // form.keys))
    sees = form.sees()
    count = -(-form.queries // step)
    sees = np.concatenate([sees, np.repeat(sees[-1:], count * step - form.queries)]).reshape(count, 1, step, 1)
    if count == 1:
        return _some(f, form, query, f.whole(sees[0]), (key, value, bias))
    if count * step > form.queries:
        query = f.op("Pad", query, f.vector([0, 0, 0, 0, count * step - form.queries, 0]))
    parts = f.transpose(f.reshape(query, -1, count, step, form.head), 1, 0, 2, 3)
    inner = Value(f.unique("part"), query.dtype), Value(f.unique("sees"), f.whole([0]).dtype)
    with f.body() as nodes:
        result = _some(f, form, *inner, (key, value, bias))
    parts = f.op("Scan", parts, f.whole(sees), body=Body(nodes, inner, (result,)), num_scan_inputs=2)
    joined = f.reshape(f.transpose(parts, 1, 0, 2, 3), -1, count * step, form.value_head)
    return joined if count * step == form.queries else f.slice(joined, 1, 0, form.queries)


def _some(f: FunctionBuilder, form: Form, query: Value, sees: Value, keys: tuple[Value, Value, Value | None]) -> Value:
    """Attend with some queries (G, t, D) to keys (G, D, S). sees: (1, t, 1)."""
    key, value, bias = keys
    logits = f.matmul(query, key)
    lowest = f.number(-math.inf, logits)
    if bias is not None:
        logits = f.add(logits, bias)
    if form.causal != "none":
        logits = f.where(f.test("Less", f.whole([[range(form.keys)]]), sees), logits, lowest)
    result = f.matmul(f.op("Softmax", logits, axis=-1), value)
    if bias is None and form.causal == "none":
        return result
    highest = f.op("ReduceMax", logits, f.vector([2]), keepdims=1)
    return f.where(f.test("Equal", highest, lowest), f.number(0, result), result)
