"""How sizes in the arguments of relayout operators are written anew once channels are gone."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from dsopt.passes.prune.rules.base import (
    Call,
    Named,
    Resize,
    Widths,
    axis,
    axis_list,
    each,
    packet_name,
    rank,
    result_sizes,
    tensor,
)

_ATEN = torch.ops.aten


def _sizes(widths: Widths, node: fx.Node, named: Named) -> Call | None:
    """view, reshape, unflatten, expand, full and the like: a size for each dimension of the result, from `dim` on."""
    name = next(known for known in ("size", "shape", "sizes") if known in named)
    first = axis(named["dim"], rank(tensor(named["self"]))) if packet_name(node) == "unflatten" else 0
    axes = widths.inference.axes(node)[first:]
    before = result_sizes(node)[first:]
    new: list[Any] = []
    for size, expr, old in zip(named[name], axes, before, strict=False):
        kept = widths.kept(expr)
        is_changed = kept != old if isinstance(size, int) and isinstance(old, int) else widths.is_cut(expr)
        new.append(size if size == -1 or not is_changed else (-1 if isinstance(size, fx.Node) else kept))
    return None if new == list(named[name]) else (node.target, {**named, name: new})


def _split(widths: Widths, node: fx.Node, named: Named) -> Call | None:
    place = axis(named["dim"], rank(tensor(named["self"])))
    kept = [widths.kept(axes[place]) for axes in widths.inference.parts(node)]
    if kept == [value.shape[place] for value in node.meta["val"]]:
        return None
    return _ATEN.split_with_sizes.default, {"self": named["self"], "split_sizes": kept, "dim": named["dim"]}


def _slice(widths: Widths, node: fx.Node, named: Named) -> Call | None:
    x = tensor(named["self"])
    place = axis(named["dim"], rank(x))
    expr, size = widths.inference.dim(x, place), widths.inference.shape(x)[place]
    if not widths.is_cut(expr) or named["step"] != 1:
        return None
    low, high, _ = slice(named["start"], named["end"]).indices(int(size))
    mask = widths.mask(expr)
    return node.target, {**named, "start": int(mask[:low].sum()), "end": int(mask[: max(low, high)].sum())}


def _squeeze(widths: Widths, node: fx.Node, named: Named) -> Call | None:
    """A dimension that is cut down to 1 is no dimension of size 1 to the model: name those that were."""
    x = tensor(named["self"])
    if not any(widths.kept(expr) == 1 and widths.is_cut(expr) for expr in widths.inference.axes(x)):
        return None
    dims = axis_list(named.get("dim"), rank(x))
    ones = [dim for dim in dims if widths.inference.shape(x)[dim] == 1]
    return _ATEN.squeeze.dims, {"self": named["self"], "dim": ones}


def _narrow(widths: Widths, node: fx.Node, named: Named) -> Call | None:
    x = tensor(named["self"])
    place = axis(named["dim"], rank(x))
    expr = widths.inference.dim(x, place)
    if not widths.is_cut(expr):
        return None
    low = axis(named["start"], int(widths.inference.shape(x)[place]))
    mask = widths.mask(expr)
    kept = int(mask[low : low + named["length"]].sum())
    return node.target, {**named, "start": int(mask[:low].sum()), "length": kept}


def _repeat(widths: Widths, node: fx.Node, named: Named) -> Call | None:
    name = "repeats" if "repeats" in named else "dims"
    counts = named[name]
    memory = widths.inference.memory
    if isinstance(counts, int):
        kept: Any = widths.kept(memory[node, "copies"])
        return None if kept == counts else (node.target, {**named, name: kept, "output_size": None})
    new = [
        count if isinstance(count, fx.Node) else widths.kept(memory[node, f"copies {index}"])
        for index, count in enumerate(counts)
    ]
    return None if new == list(counts) else (node.target, {**named, name: new})


def _pad(widths: Widths, node: fx.Node, named: Named) -> Call | None:
    memory, new = widths.inference.memory, list(named["pad"])
    for number in range(len(new) // 2):
        for offset, name in enumerate(("before", "after")):
            expr = memory.get((node, f"{name} {number}"))
            if expr is not None and new[2 * number + offset] > 1:
                new[2 * number + offset] = widths.kept(expr)
    return None if new == list(named["pad"]) else (node.target, {**named, "pad": new})


RESIZES: dict[str, Resize] = {
    **each("view reshape _unsafe_view unflatten expand", _sizes),
    **each("full zeros ones empty rand randn new_full new_zeros new_ones new_empty", _sizes),
    **each("split split_with_sizes chunk", _split),
    "squeeze": _squeeze,
    "slice": _slice,
    "narrow": _narrow,
    **each("repeat tile repeat_interleave", _repeat),
    **each("pad constant_pad_nd", _pad),
}
