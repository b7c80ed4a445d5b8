"""The functions that are called from outside: a range of tiles of one head, with search or over all keys."""

from __future__ import annotations

from dsopt.backends.cpu.sparse.code import (
    LOWEST,
    Code,
    Memory,
    divided,
    either,
    halved,
    least,
    most,
    narrow,
    number,
    rounded_up,
    same,
    wide,
)
from dsopt.backends.cpu.sparse.form import Form, Numbers
from dsopt.backends.cpu.sparse.search import COVERED, OWN, PICKED, ROWS
from dsopt.backends.cpu.sparse.vectors import LANES, pieces, transposed
from dsopt.backends.tir.tvm_adapter import Expr, PrimFunc, constant, tirx
from dsopt.runtime.sparse_layout import FLOAT_PARTS, INTEGER_PARTS, SCALE, ZERO
from dsopt.sparse_schedule import LEAF


def pack(form: Form) -> PrimFunc:
    """Make dsopt_pack: scaled queries as (groups, D, lanes), the last row repeated to a group, and the mean of `probed` rows at `near`."""
    code = Code("dsopt_pack")
    query, near, settings, packed, probe = code.floats("query", "near", "settings", "packed", "probe")
    rows, probed, groups, stride = code.counts("rows", "probed", "groups", "stride")
    scale = code.let(settings[SCALE])
    lanes = form.level.lanes
    with code.loop(groups) as g:
        for half in range(0, lanes, LANES):
            starts = [code.let(least(g * lanes + half + n, rows - 1) * stride) for n in range(LANES)]
            with code.loop(form.head // LANES) as i:
                read = [code.let(query.vector(start + i * LANES, LANES) * same(scale, LANES)) for start in starts]
                for n, column in enumerate(transposed(code, read)):
                    code.set(packed, column, (g * form.head + i * LANES + n) * lanes + half)
    part = code.let(scale / tirx.Cast("float32", probed))
    for at, width in pieces(form.head, lanes):
        total = code.registers(f"float32x{width}", [same(number(0.0), width)])
        with code.loop(probed) as r:
            code.set(total, total[0] + near.vector(r * stride + at, width))
        code.set(probe, total[0] * same(part, width), at)
    return code.build()


def unpack(form: Form) -> PrimFunc:
    """Make dsopt_unpack: write (groups, E, lanes) sums over their totals as rows; 0 where the total is 0."""
    code = Code("dsopt_unpack")
    sums, total, out = code.floats("sums", "total", "out")
    rows, groups, stride = code.counts("rows", "groups", "stride")
    lanes = form.level.lanes
    with code.loop(groups) as g:
        for half in range(0, lanes, LANES):
            first = code.let(g * lanes + half)
            with code.when(first < rows):
                whole = code.let(total.vector(first, LANES))
                is_any = whole > same(number(0.0), LANES)
                safe = either(is_any, whole, same(number(1.0), LANES))
                part = code.let(either(is_any, same(number(1.0), LANES) / safe, same(number(0.0), LANES)))
                with code.loop(form.value_head // LANES) as i:
                    start = code.let((g * form.value_head + i * LANES) * lanes + half)
                    read = [code.let(sums.vector(start + n * lanes, LANES) * part) for n in range(LANES)]
                    for n, row in enumerate(transposed(code, read)):
                        with code.when(first + n < rows):
                            code.set(out, row, (first + n) * stride + i * LANES)
    return code.build()


class _Call:
    """Parameters of the two functions, and what they do alike."""

    def __init__(self, name: str, form: Form) -> None:
        self.form, self.code = form, Code(name)
        code = self.code
        names = ("query", "key", "value", "bias", "weight", "node_key", "node_value", "node_weight", "node_log", "out")
        self.given = dict(zip(names, code.floats(*names), strict=True))
        floats, settings = code.floats("floats", "settings")
        integers, trace = code.integers("integers", "trace")
        (held,) = code.integers("numbers", dtype="int64")
        self.given["settings"] = self.settings = settings
        self.trace, self.held, self.numbers = trace, held, Numbers(held)
        self.places = {each: code.let(self.numbers[each]) for each in (*FLOAT_PARTS, *INTEGER_PARTS)}
        self.arenas = {**dict.fromkeys(FLOAT_PARTS, floats), **dict.fromkeys(INTEGER_PARTS, integers)}
        self.queries, self.keys, self.tile = (code.let(self.numbers[each]) for each in ("queries", "keys", "tile"))
        self.is_causal, self.offset = code.let(self.numbers["causal"] > 0), code.let(self.numbers["offset"])

    def at(self, part: str) -> Expr:
        """Return a pointer to a part of the work memory, or to what was given."""
        return self.given[part].at(0) if part in self.given else self.arenas[part].at(self.places[part])

    def state(self, slot: int) -> Expr:
        """Return a count that another function left."""
        return self.code.let(wide(self.arenas["state"][self.places["state"] + slot]))

    def sees(self, row: Expr) -> Expr:
        """Return how many keys a query sees."""
        last = least(most(row + self.offset + 1, 0), self.keys)
        return self.code.let(either(self.is_causal, last, self.keys))

    def begin(self, first: Expr) -> tuple[Expr, Expr]:
        """Pack the queries of a tile and start its sums. Returns its rows and its groups of them."""
        code, lanes = self.code, self.form.level.lanes
        rows = code.let(least(self.tile, self.queries - first))
        groups = code.let(divided(rounded_up(rows, lanes), lanes))
        stride = code.let(self.numbers["query_row"])
        # Under a causal mask a tile searches with the queries up to its first one: see selection.probes.
        low = code.let(either(self.is_causal, most(first - self.tile + 1, 0), first))
        probed = code.let(either(self.is_causal, first - low + 1, rows))
        source, near = (self.given["query"].at(code.let(row * stride)) for row in (first, low))
        code.call(
            "dsopt_pack",
            source,
            near,
            self.settings.at(0),
            self.at("packed"),
            self.at("probe"),
            rows,
            probed,
            groups,
            stride,
        )
        limits, place = self.arenas["limit"], self.places["limit"]
        with code.loop(groups * lanes) as i:
            code.set(limits, narrow(self.sees(code.let(first + least(i, rows - 1)))), place + i)
        floats = self.arenas["sums"]
        zero = code.let(self.settings[ZERO])
        self._fill(floats, self.places["sums"], groups * self.form.value_head, zero)
        self._fill(floats, self.places["total"], groups, zero)
        self._fill(floats, self.places["highest"], groups, number(LOWEST))
        return rows, groups

    def _fill(self, memory: Memory, start: Expr, vectors: Expr, value: Expr) -> None:
        lanes = self.form.level.lanes
        with self.code.loop(vectors) as i:
            self.code.set(memory, same(value, lanes), start + i * lanes)

    def attend(self, count: Expr, groups: Expr, own: Expr, place: Expr) -> None:
        """Attend to what is in the panels."""
        parts = ("panel_key", "panel_value", "added", "packed", "logits", "sums", "highest", "total", "shrink", "limit")
        self.code.call("dsopt_attend", *map(self.at, parts), count, groups, own, place)

    def end(self, first: Expr, rows: Expr, groups: Expr) -> None:
        """Write the rows of a tile."""
        stride = self.code.let(self.numbers["out_row"])
        target = self.given["out"].at(self.code.let(first * stride))
        self.code.call("dsopt_unpack", self.at("sums"), self.at("total"), target, rows, groups, stride)


def tiles(form: Form) -> PrimFunc:
    """Make dsopt_tiles: tiles first_tile <= tile < last_tile of one head that searches."""
    call = _Call("dsopt_tiles", form)
    code, numbers = call.code, call.numbers
    with code.loop(numbers["last_tile"], numbers["first_tile"]) as tile:
        first = code.let(tile * call.tile)
        rows, groups = call.begin(first)
        low, high = call.sees(first), call.sees(code.let(first + rows - 1))
        prefix = code.let(least(halved(low, LEAF.bit_length() - 1), numbers["leaves"]))
        here = code.let(first + call.offset)
        near = code.let(here - numbers["near_before"]), code.let(here + numbers["near_behind"])
        shared = [call.at(each) for each in ("node_key", "node_weight", "node_log", "probe", "score", "listed", "kept")]
        code.call(
            "dsopt_search", call.at("key"), call.at("bias"), *shared, call.at("picked"), call.at("state"),
            call.held.at(0), prefix, *near,
        )  # fmt: skip
        covering = [call.at(each) for each in ("cover_first", "cover_level", "cover_index", "state")]
        code.call("dsopt_cover", *shared, *covering, call.held.at(0), prefix)
        names = (
            "key", "value", "bias", "weight", "node_key", "node_value", "node_weight", "settings", "panel_key",
            "panel_value", "added", "picked",
        )  # fmt: skip
        own = code.let(prefix * LEAF)
        code.call("dsopt_choose_rows", *map(call.at, names), *covering, call.held.at(0), own, high)
        call.attend(call.state(ROWS), groups, call.state(OWN), own)
        call.end(first, rows, groups)
        _record(call, tile)
    return code.build()


def _record(call: _Call, tile: Expr) -> None:
    """Write down what a tile picked, for tests."""
    code, row = call.code, call.code.let(call.numbers["trace_row"])
    with code.when(row > 0):
        start = code.let(tile * row)
        picks, nodes = call.state(PICKED), call.state(COVERED)
        code.set(call.trace, narrow(picks), start)
        code.set(call.trace, narrow(nodes), start + 1)
        with code.loop(picks) as i:
            code.set(call.trace, call.arenas["picked"][call.places["picked"] + i], start + (i + 1) * 2)
        for n, part in enumerate(("cover_level", "cover_index")):
            with code.loop(nodes) as i:
                code.set(call.trace, call.arenas[part][call.places[part] + i], start + (picks + i + 1) * 2 + n)


def dense(form: Form) -> PrimFunc:
    """Make dsopt_dense: tiles of one head that attends to all keys."""
    call = _Call("dsopt_dense", form)
    code, numbers, chunk = call.code, call.numbers, form.level.chunk
    with code.loop(numbers["last_tile"], numbers["first_tile"]) as tile:
        first = code.let(tile * call.tile)
        rows, groups = call.begin(first)
        low, high = call.sees(first), call.sees(code.let(first + rows - 1))
        with code.loop(divided(high + (chunk - 1), chunk)) as i:
            start = code.let(i * chunk)
            last = code.let(least(start + chunk, high))
            code.call(
                "dsopt_copy_rows", *(call.at(each) for each in ("key", "value", "bias", "settings", "panel_key", "panel_value", "added")),
                numbers["key_row"], numbers["value_row"], start, last, constant(0, "int64"),
            )  # fmt: skip
            count = code.let(last - start)
            call.attend(
                count,
                groups,
                code.let(most(least(low - start, count), 0)),
                code.let(start + most(least(low - start, count), 0)),
            )
        call.end(first, rows, groups)
    return code.build()
