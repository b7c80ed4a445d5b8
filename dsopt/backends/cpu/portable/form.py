"""The whole function: heads with one schedule after the other, joined at the end."""

from __future__ import annotations

import numpy as np

from dsopt.backends.cpu.builder import Value
from dsopt.backends.cpu.functions import Function, FunctionBuilder
from dsopt.backends.cpu.portable import dense
from dsopt.backends.cpu.portable.attend import Attention
from dsopt.backends.cpu.portable.plan import Form, Places
from dsopt.backends.cpu.portable.pyramid import Keys, Level, build, load_keys, make_slots
from dsopt.backends.cpu.portable.search import Search
from dsopt.sparse_schedule import Schedule


def write(form: Form, name: str) -> Function:
    """Return the function (query, key, value[, bias]) -> (B, H, T, E) of one attention."""
    f = FunctionBuilder()
    names = ["query", "key", "value"]
    inputs = [f.input(each, form.dtype) for each in names]
    if form.bias is not None:
        inputs.append(f.input("bias", form.bias.dtype))
    batch = f.size(inputs[0], 0)
    if 0 in (form.heads, form.queries, form.keys, form.head, form.value_head):
        return f.function(name, inputs, _nothing(f, form, batch))
    groups = form.groups()
    query = f.cast(inputs[0], form.work_dtype)
    query = f.times(query, f.number(form.scale, query))
    keys = load_keys(f, form, inputs[1], inputs[2], inputs[3] if form.bias is not None else None, batch)
    top = max((max(plan.first, plan.top) for plan, _ in groups if not plan.is_dense), default=-1)
    levels = build(f, form, keys, top) if top >= 0 else []
    parts = [_group(f, form, plan, members, query, (keys, levels, batch)) for plan, members in groups]
    result = f.concat(parts, 1)
    if len(groups) > 1:
        order = np.argsort([number for _, members in groups for number in members], kind="stable")
        result = f.gather(result, f.whole(order), axis=1)
    return f.function(name, inputs, f.cast(result, form.dtype))


def _nothing(f: FunctionBuilder, form: Form, batch: Value) -> Value:
    zero = f.constant(0, form.dtype)
    return f.expand(zero, batch, form.heads, form.queries, form.value_head)


def _group(
    f: FunctionBuilder, form: Form, plan: Schedule, members: list[int], query: Value,
    keys: tuple[Keys, list[Level], Value],
) -> Value:  # fmt: skip
    """Return the attention (B, heads, T, E) of heads with one schedule."""
    table, levels, batch = keys
    if len(members) < form.heads:
        query = f.gather(query, f.vector(members), axis=1)
    query = f.reshape(query, -1, form.queries, form.head)
    slots = make_slots(f, form, members, batch)
    if plan.is_dense:
        result = dense.attend(f, form, query, table, slots)
    else:
        places = form.places()
        result = _sparse(f, form, plan, query, places, Attention(f, form, places, table, levels, slots))
    return f.reshape(result, -1, len(members), form.queries, form.value_head)


def _sparse(f: FunctionBuilder, form: Form, plan: Schedule, query: Value, places: Places, part: Attention) -> Value:
    """Select and attend, (G, T, D) -> (G, T, E)."""
    rows = places.count * form.tile
    if rows > form.queries:
        query = f.op("Pad", query, f.vector([0, 0, 0, 0, rows - form.queries, 0]))
    probed, counts = query, places.rows
    if form.causal != "none":  # the queries up to a tile's first one: see selection.probes
        probed = f.slice(f.op("Pad", query, f.vector([0, form.tile - 1, 0, 0, 0, 0])), 1, 0, rows)
        counts = np.minimum(np.arange(0, rows, form.tile) + 1, form.tile)
    query, probed = (f.reshape(each, -1, places.count, form.tile, form.head) for each in (query, probed))
    probe = f.op("Div", f.sum(probed, 2), f.constant(counts[None, :, None], query.dtype))
    search = Search(f, probe, form.head, places, part.keys, part.levels, part.slots)
    picks = search.find_keys(plan)
    cover = search.find_cover(plan)
    if picks is not None and picks.is_row:
        picks = type(picks)(search.spread(picks.index), picks.is_valid, picks.count)
    picked = None if picks is None else part.single_rows(picks)
    nodes = part.node_rows(search, cover, picks, picked)
    found = [picked, nodes, part.own_rows(search)]
    result = part.attend(query, [each for each in found if each is not None])
    result = f.reshape(result, -1, rows, form.value_head)
    return result if rows == form.queries else f.slice(result, 1, 0, form.queries)
