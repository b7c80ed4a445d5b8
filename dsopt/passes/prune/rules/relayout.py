"""Operators that move elements: reshapes, transposes, joins and slices. Where channels end up is known index by index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import fx

from dsopt.passes.prune.axes import Expr, fixed, is_fixed, same
from dsopt.passes.prune.rules.base import (
    Named,
    Result,
    Rule,
    Unknown,
    axis,
    axis_list,
    each,
    fixed_axes,
    rank,
    result_sizes,
    tensor,
)

if TYPE_CHECKING:
    from dsopt.passes.prune.inference import AxisInference


def _reshape(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    """A size that is computed from varying ones can be left to torch (-1) in one place; more of them must hold no channels."""
    axes = inference.reshaped(inference.axes(tensor(named["self"])), result_sizes(node))
    sizes = named.get("size", named.get("shape", named.get("sizes", ())))
    places = range(axis(named.get("dim", 0), rank(tensor(named["self"]))), len(axes))
    computed = [axes[place] for place, size in zip(places, sizes or (), strict=False) if isinstance(size, fx.Node)]
    open_sizes = [expr for expr in computed if not is_fixed(expr)]
    if len(open_sizes) + (-1 in [size for size in sizes or () if isinstance(size, int)]) > 1:
        for expr in open_sizes:
            inference.pin(expr, "its size is computed from varying ones")
    return axes


def _reshape_as(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    """The shape of another tensor: each dimension must stay as long as the one there."""
    axes, other = inference.reshaped(inference.axes(tensor(named["self"])), result_sizes(node)), tensor(named["other"])
    for index, expr in enumerate(axes):
        inference.tie(other, index, expr)
    return axes


def _permuted(inference: AxisInference, x: fx.Node, order: list[int]) -> Result:
    axes = inference.axes(x)
    return tuple(axes[place] for place in order)


def _permute(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    x = tensor(named["self"])
    return _permuted(inference, x, [axis(dim, rank(x)) for dim in named["dims"]])


def _swapped(first: str | int, second: str | int) -> Rule:
    """Return the rule of an operator that swaps two dimensions, given by the names of arguments or by number."""

    def rule(inference: AxisInference, node: fx.Node, named: Named) -> Result:
        x = tensor(named["self"])
        order = list(range(rank(x)))
        if rank(x) >= 2:
            a, b = (axis(each if isinstance(each, int) else named[each], rank(x)) for each in (first, second))
            order[a], order[b] = order[b], order[a]
        return _permuted(inference, x, order)

    return rule


def _reverse(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    x = tensor(named["self"])
    return _permuted(inference, x, list(range(rank(x)))[::-1])


def _movedim(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    x = tensor(named["self"])
    source, target = axis_list(named["source"], rank(x)), axis_list(named["destination"], rank(x))
    rest = [place for place in range(rank(x)) if place not in source]
    moved = dict(zip(target, source, strict=True))
    return _permuted(inference, x, [moved[place] if place in moved else rest.pop(0) for place in range(rank(x))])


def _squeeze(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    x = tensor(named["self"])
    dims = axis_list(named.get("dim"), rank(x))
    sizes = inference.shape(x)
    return tuple(expr for place, expr in enumerate(inference.axes(x)) if not (place in dims and same(sizes[place], 1)))


def _unsqueeze(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    x = tensor(named["self"])
    place = axis(named["dim"], rank(x) + 1)
    axes = inference.axes(x)
    return (*axes[:place], (), *axes[place:])


def _concat(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    nodes = [tensor(part) for part in named["tensors"]]
    nodes = [part for part in nodes if inference.shape(part) != (0,)]
    place = axis(named["dim"], rank(nodes[0]))
    sizes = result_sizes(node)
    result = []
    for index, size in enumerate(sizes):
        if index == place:
            result.append(_joined(inference, [inference.dim(part, index) for part in nodes], size))
        else:
            result.append(_alike(inference, nodes, index))
    return tuple(result)


def _joined(inference: AxisInference, parts: list[Expr], size: Any) -> Expr:
    if isinstance(size, int):
        return inference.concat(parts)
    for part in parts:
        inference.pin(part, "it is joined along a varying size")
    return fixed(size)


def _alike(inference: AxisInference, nodes: list[fx.Node], index: int) -> Expr:
    known = [part for part in nodes if not inference.is_open(part, index)]
    expr = inference.dim((known or nodes)[0], index)
    for part in nodes:
        inference.tie(part, index, expr)
    return expr


def _stack(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    nodes = [tensor(part) for part in named["tensors"]]
    axes = [_alike(inference, nodes, index) for index in range(rank(nodes[0]))]
    place = axis(named["dim"], rank(nodes[0]) + 1)
    return (*axes[:place], *fixed_axes([len(nodes)]), *axes[place:])


def _sliced(
    inference: AxisInference, node: fx.Node, x: fx.Node, place: int, bounds: list[tuple[int, int]]
) -> list[Any]:
    axes = inference.axes(x)
    return [(*axes[:place], inference.take(axes[place], low, high), *axes[place + 1 :]) for low, high in bounds]


def _bounds(start: int | None, end: int | None, size: int) -> tuple[int, int]:
    """Return the indices that a slice takes, as Python does."""
    low, high, _ = slice(start, end).indices(size)
    return low, max(low, high)


def _slice(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    x = tensor(named["self"])
    place = axis(named["dim"], rank(x))
    size, axes = inference.shape(x)[place], inference.axes(x)
    out = fixed(result_sizes(node)[place])
    if not isinstance(size, int) or is_fixed(axes[place]):
        return (*axes[:place], out, *axes[place + 1 :])
    if not all(isinstance(bound, (int, type(None))) for bound in (named["start"], named["end"])):
        inference.pin(axes[place], "the bounds of the slice are computed")
        return (*axes[:place], out, *axes[place + 1 :])
    low, high = _bounds(named["start"], named["end"], size)
    step = named["step"]
    if step == 1:
        return (*axes[:place], inference.take(axes[place], low, high), *axes[place + 1 :])
    if size % step or low >= step or high != size:
        inference.pin(axes[place], "a slice with a step takes some of it")
        return (*axes[:place], out, *axes[place + 1 :])
    rows, within = inference.regroup(axes[place], size // step, step)
    inference.pin(within, "a slice takes every so many of it", inner=True)
    return (*axes[:place], rows, *axes[place + 1 :])


def _narrow(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    x = tensor(named["self"])
    start, count = named["start"], named["length"]
    place = axis(named["dim"], rank(x))
    size = inference.shape(x)[place]
    if not all(isinstance(each, int) for each in (start, count, size)):
        inference.pin_dims(x, (place,), "the bounds of the slice are computed")
        axes = inference.axes(x)
        return (*axes[:place], fixed(result_sizes(node)[place]), *axes[place + 1 :])
    low = axis(start, int(size))
    return _sliced(inference, node, x, place, [(low, low + count)])[0]  # type: ignore[no-any-return]


def _split(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    """split, split_with_sizes and chunk: the sizes of the parts are those of the results."""
    x = tensor(named["self"])
    place = axis(named["dim"], rank(x))
    lengths = [value.shape[place] for value in node.meta["val"]]
    if not all(isinstance(each, int) for each in lengths):
        inference.pin_dims(x, (place,), "its parts vary in size")
        axes = inference.axes(x)
        return [(*axes[:place], fixed(each), *axes[place + 1 :]) for each in lengths]
    bounds, low = [], 0
    for each_length in lengths:
        bounds.append((low, low + each_length))
        low += each_length
    return _sliced(inference, node, x, place, bounds)


def _select(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    x = tensor(named["self"])
    place = axis(named["dim"], rank(x))
    inference.pin_dims(x, (place,), "one index of it is taken", inner=True)
    axes = inference.axes(x)
    return (*axes[:place], *axes[place + 1 :])


def _unbind(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    x = tensor(named["self"])
    place = axis(named["dim"], rank(x))
    inference.pin_dims(x, (place,), "it is taken apart index by index", inner=True)
    axes = inference.axes(x)
    return [(*axes[:place], *axes[place + 1 :])] * len(node.meta["val"])


def _expand(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    """A dimension of size 1 that is repeated becomes channels of its own: any number of copies is as good."""
    x, sizes = tensor(named["self"]), result_sizes(node)
    if named.get("other") is not None:
        return inference.broadcast([x, tensor(named["other"])], sizes)
    first = len(sizes) - rank(x)
    old = inference.shape(x)
    result: list[Expr] = []
    for index, size in enumerate(sizes):
        is_new = index < first or (same(old[index - first], 1) and not same(size, 1))
        given = named["size"][index]
        fresh = inference.fresh(size) if isinstance(given, int) else fixed(size)
        result.append(fresh if is_new else inference.dim(x, index - first))
    return tuple(result)


def _repeat(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    """(N) repeated K times is (K, N), and any number of copies is as good."""
    x, counts = tensor(named["self"]), named["repeats" if "repeats" in named else "dims"]
    added = len(counts) - rank(x)
    if added < 0:
        raise Unknown("its counts are fewer than its dimensions")
    lengths = [count.meta["val"] if isinstance(count, fx.Node) else count for count in counts]
    copies = [inference.fresh(count) for count in lengths]  # a count that is computed holds no channels
    for index, expr in enumerate(copies):
        inference.remember(f"copies {index}", expr)
    axes = (*((),) * added, *inference.axes(x))
    return tuple((*copy, *expr) for copy, expr in zip(copies, axes, strict=True))


def _repeat_interleave(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    x, count, dim = tensor(named["self"]), named["repeats"], named.get("dim")
    if not isinstance(count, int) or dim is None:
        raise Unknown("how often it is repeated is computed, or it is flattened")
    copies = inference.fresh(count)
    inference.remember("copies", copies)
    place = axis(dim, rank(x))
    axes = inference.axes(x)
    return (*axes[:place], (*axes[place], *copies), *axes[place + 1 :])


def _moved_along(names: str) -> Rule:
    """Return the rule of an operator that moves elements along some dimensions, which are kept."""

    def rule(inference: AxisInference, node: fx.Node, named: Named) -> Result:
        x = tensor(named["self"])
        dims = axis_list(named[names], rank(x))
        inference.pin_dims(x, dims, "its elements change places")
        axes = inference.axes(x)
        return tuple(fixed(size) if i in dims else axes[i] for i, size in enumerate(result_sizes(node)))

    return rule


def _pad(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    """Padding adds indices of its own before and after; any number of them is as good where they hold one value."""
    x, amounts = tensor(named["self"]), named["pad"]
    axes = list(inference.axes(x))
    is_constant = named.get("mode", "constant") == "constant"
    for number in range(len(amounts) // 2):
        place = rank(x) - 1 - number
        before, after = amounts[2 * number], amounts[2 * number + 1]
        if (before, after) == (0, 0):
            continue
        size = result_sizes(node)[place]
        if is_fixed(axes[place]) or not is_constant or not isinstance(size, int) or min(before, after) < 0:
            inference.pin(axes[place], "it is padded by its own elements or cut")
            axes[place] = fixed(size)
        else:
            ends = [inference.fresh(count) if count else None for count in (before, after)]
            for name, end in zip(("before", "after"), ends, strict=True):
                inference.remember(f"{name} {number}", end or ())
            parts = [ends[0], axes[place], ends[1]]
            axes[place] = inference.concat([part for part in parts if part is not None])
    return tuple(axes)


RULES: dict[str, Rule] = {
    **each("view reshape _unsafe_view flatten unflatten", _reshape),
    **each("reshape_as view_as", _reshape_as),
    "permute": _permute,
    **each("transpose swapdims", _swapped("dim0", "dim1")),
    "swapaxes": _swapped("axis0", "axis1"),
    **each("t mT mH adjoint", _swapped(-2, -1)),
    "numpy_T": _reverse,
    **each("movedim moveaxis", _movedim),
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    **each("cat concat concatenate", _concat),
    "stack": _stack,
    "slice": _slice,
    "narrow": _narrow,
    **each("split split_with_sizes chunk", _split),
    "select": _select,
    "unbind": _unbind,
    **each("expand expand_as", _expand),
    **each("repeat tile", _repeat),
    "repeat_interleave": _repeat_interleave,
    **each("roll flip", _moved_along("dims")),
    **each("pad constant_pad_nd", _pad),
}
