"""The softmax over the rows of the panels, a chunk of rows at a time.

Vectors run along queries everywhere: no sum over lanes is needed, and keys and values are read as they lie. Sums of a block of
`rows` keys (or of parts of a value) and two vectors of queries stay in registers. The softmax is the streaming one (Milakov and
Gimelshein 2018): what was summed before a higher logit came is scaled down by it.
"""

from __future__ import annotations

from collections.abc import Callable

from dsopt.backends.cpu.sparse.code import (
    INFINITY,
    Code,
    divided,
    halved,
    least,
    most,
    narrow,
    number,
    rounded_up,
    same,
)
from dsopt.backends.cpu.sparse.form import Form
from dsopt.backends.cpu.sparse.vectors import exponential, kept
from dsopt.backends.tir.tvm_adapter import Expr, PrimFunc


def logits(form: Form) -> PrimFunc:
    """Make dsopt_logits: (groups, chunk, lanes) scaled products of `count` rows of keys, a multiple of the block, and queries."""
    code = Code("dsopt_logits")
    panel, packed, offset, target = code.floats("panel_key", "packed", "offset", "logits")
    count, groups = code.counts("count", "groups")
    lanes, rows, length = form.level.lanes, form.level.rows, form.head

    def block(group: Expr, wide: int) -> None:
        start = code.let(group * (length * lanes))
        with code.loop(divided(count, rows)) as i:
            first = code.let(i * (rows * length))
            held = code.registers(f"float32x{lanes}", [same(number(0.0), lanes)] * (rows * wide))
            with code.loop(length) as c:
                queries = [code.let(packed.vector(start + c * lanes + n * length * lanes, lanes)) for n in range(wide)]
                for r in range(rows):
                    each = code.let(same(panel[first + c + r * length], lanes))
                    for n, query in enumerate(queries):
                        code.set(held, held[r * wide + n] + each * query, r * wide + n)
            for r in range(rows):
                added = code.let(same(offset[i * rows + r], lanes))
                for n in range(wide):
                    place = ((group + n) * form.level.chunk + i * rows + r) * lanes
                    code.set(target, held[r * wide + n] + added, place)

    _in_pairs(code, groups, block)
    return code.build()


def values(form: Form) -> PrimFunc:
    """Make dsopt_values: sums (groups, E, lanes) times `shrink`, and the weighted values of `count` rows added."""
    code = Code("dsopt_values")
    panel, weights, sums, shrink = code.floats("panel_value", "logits", "sums", "shrink")
    count, groups = code.counts("count", "groups")
    lanes, length = form.level.lanes, form.value_head

    def block(group: Expr, wide: int) -> None:
        factors = [code.let(shrink.vector((group + n) * lanes, lanes)) for n in range(wide)]
        start = code.let(group * (form.level.chunk * lanes))

        def part(first: Expr, rows: int) -> None:
            place = code.let((group * length + first) * lanes)
            places = [(r, n, place + (n * length + r) * lanes) for r in range(rows) for n in range(wide)]
            held = code.registers(f"float32x{lanes}", [sums.vector(at, lanes) * factors[n] for _, n, at in places])
            with code.loop(count) as j:
                read = [
                    code.let(weights.vector(start + j * lanes + n * form.level.chunk * lanes, lanes))
                    for n in range(wide)
                ]
                for r in range(rows):
                    each = code.let(same(panel[j * length + first + r], lanes))
                    for n in range(wide):
                        code.set(held, held[r * wide + n] + each * read[n], r * wide + n)
            for place_of, (_, _, at) in enumerate(places):
                code.set(sums, held[place_of], at)

        _in_blocks(code, length, form.level.rows, part)

    _in_pairs(code, groups, block)
    return code.build()


def _in_pairs(code: Code, groups: Expr, block: Callable[[Expr, int], None]) -> None:
    pairs = code.let(halved(groups, 1))
    with code.loop(pairs) as i:
        block(code.let(i * 2), 2)
    with code.when(pairs * 2 < groups):
        block(code.let(pairs * 2), 1)


def _in_blocks(code: Code, length: int, rows: int, part: Callable[[Expr, int], None]) -> None:
    """Split a length into blocks of nearly equal size, of at most `rows`."""
    blocks = -(-length // rows)
    size, larger = divmod(length, blocks)
    if larger:
        with code.loop(larger) as i:
            part(code.let(i * (size + 1)), size + 1)
    with code.loop(blocks - larger) as i:
        part(code.let(i * size + larger * (size + 1)), size)


def softmax(form: Form) -> PrimFunc:
    """Make dsopt_softmax: logits to weights; `highest`, `total` and `shrink` (groups, lanes) follow.

    Row j >= mask is the key at place + j - mask, which a query sees if that is below its limit. `rows` rows are padded to a block.
    """
    code = Code("dsopt_softmax")
    held, highest, total, shrink = code.floats("logits", "highest", "total", "shrink")
    (limit,) = code.integers("limit")
    count, groups, mask, place = code.counts("count", "groups", "mask", "place")
    lanes = form.level.lanes
    with code.loop(groups) as g:
        start = code.let(g * (form.level.chunk * lanes))
        sees = code.let(limit.vector(g * lanes, lanes))
        with code.loop(count, mask) as j:
            at = code.let(start + j * lanes)
            is_seen = sees > same(narrow(place + j - mask), lanes)
            code.set(held, kept(is_seen, held.vector(at, lanes), -INFINITY, lanes), at)
        before = code.let(highest.vector(g * lanes, lanes))
        top = code.registers(f"float32x{lanes}", [before])
        with code.loop(count) as j:
            code.set(top, most(top[0], held.vector(start + j * lanes, lanes)))
        now = code.let(top[0])
        factor = code.let(exponential(code, code.let(before - now), lanes))
        added = code.registers(f"float32x{lanes}", [code.let(total.vector(g * lanes, lanes) * factor)])
        with code.loop(count) as j:
            at = code.let(start + j * lanes)
            weight = code.let(exponential(code, code.let(held.vector(at, lanes) - now), lanes))
            code.set(held, weight, at)
            code.set(added, added[0] + weight)
        code.set(highest, now, g * lanes)
        code.set(shrink, factor, g * lanes)
        code.set(total, added[0], g * lanes)
    return code.build()


def attend(form: Form) -> PrimFunc:
    """Make dsopt_attend: go over all rows. Row j >= own is the key at place + j - own and is masked by the limits."""
    code = Code("dsopt_attend")
    names = ("panel_key", "panel_value", "offset", "packed", "logits", "sums", "highest", "total", "shrink")
    panel_key, panel_value, offset, packed, held, sums, highest, total, shrink = code.floats(*names)
    (limit,) = code.integers("limit")
    count, groups, own, place = code.counts("count", "groups", "own", "place")
    chunk = form.level.chunk
    with code.loop(divided(count + (chunk - 1), chunk)) as i:
        start = code.let(i * chunk)
        rows = code.let(least(count - start, chunk))
        mask = code.let(least(most(own - start, 0), rows))
        first_key, first_value = code.let(start * form.head), code.let(start * form.value_head)
        code.call(
            "dsopt_logits", panel_key.at(first_key), packed.at(0), offset.at(start), held.at(0),
            rounded_up(rows, form.level.rows), groups,
        )  # fmt: skip
        code.call(
            "dsopt_softmax", held.at(0), highest.at(0), total.at(0), shrink.at(0), limit.at(0), rows, groups, mask,
            place + start + mask - own,
        )  # fmt: skip
        code.call("dsopt_values", panel_value.at(first_value), held.at(0), sums.at(0), shrink.at(0), rows, groups)
    return code.build()
