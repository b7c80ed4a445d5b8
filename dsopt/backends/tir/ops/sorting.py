"""The largest or smallest elements of each row, in order: topk and sort.

Place by place, the next element in the order (value, then place) after the one chosen last is looked for: rank times size steps,
no memory beside the result. Equal values keep their order, as in a stable sort.
"""

from __future__ import annotations

from dsopt.backends.tir.ops.softmax import split_at
from dsopt.backends.tir.program import Buffer
from dsopt.backends.tir.registry import Context, lowering
from dsopt.backends.tir.tvm_adapter import tirx


def _ordered(context: Context, x: Buffer, dim: int, count: int, descending: bool) -> tuple[Buffer | None, ...]:
    before, size, after = split_at(x.shape, dim)
    values, places = context.result(0), context.result(1)
    with context.kernel() as k:
        source = k.read("x", x, (before, size, after))
        y, where = k.write("values", values, (before, count, after)), k.write("places", places, (before, count, after))
        with k.grid(o=before, i=after) as (o, i):
            last = k.local("last", source[o, 0, i], x.dtype)
            last_place = k.local("last_place", -1, "int32")
            with k.loop("rank", 0, count) as rank:
                best = k.local("best", source[o, 0, i], x.dtype)
                place = k.local("place", -1, "int32")
                with k.loop("j", 0, size) as j:
                    value = k.let("value", source[o, j, i], x.dtype)
                    behind = value < last[0] if descending else value > last[0]
                    follows = tirx.any(tirx.EQ(rank, 0), behind, tirx.all(tirx.EQ(value, last[0]), j > last_place[0]))
                    beats = tirx.any(place[0] < 0, value > best[0] if descending else value < best[0])
                    with k.when(tirx.all(follows, beats)):
                        k.store(best, value)
                        k.store(place, j)
                k.store(last, best[0])
                k.store(last_place, place[0])
                k.store(y, best[0], o, rank, i)
                k.store(where, tirx.Cast("int64", place[0]), o, rank, i)
    return values, places


@lowering("aten.topk.default")
def _topk(
    context: Context, x: Buffer, count: int, dim: int, largest: bool, is_sorted: bool
) -> tuple[Buffer | None, ...]:
    return _ordered(context, x, dim, count, largest)


@lowering("aten.sort.default")
def _sort(context: Context, x: Buffer, dim: int, descending: bool) -> tuple[Buffer | None, ...]:
    return _ordered(context, x, dim, split_at(x.shape, dim)[1], descending)


@lowering("aten.sort.stable")
def _sort_stable(
    context: Context, x: Buffer, stable: bool | None, dim: int, descending: bool
) -> tuple[Buffer | None, ...]:
    return _sort(context, x, dim, descending)  # type: ignore[return-value]
