"""Embeddings and reads by index: a dimension that indices point into is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from dsopt.passes.prune.axes import Axes
from dsopt.passes.prune.rules.base import Named, Result, Rule, axis, each, fixed_axes, rank, result_sizes, tensor

if TYPE_CHECKING:
    from dsopt.passes.prune.inference import AxisInference


def _embedding(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    table, ids = tensor(named["weight"]), tensor(named["indices"])
    inference.pin_dims(table, (0,), "ids point into it", inner=True)
    return (*inference.axes(ids), inference.dim(table, 1))


def _embedding_bag(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    """The sum or mean of some rows; the other results are places in the bags."""
    table = tensor(named["weight"])
    inference.pin_dims(table, (0,), "ids point into it", inner=True)
    first, *others = node.meta["val"]
    return [(*fixed_axes(first.shape[:1]), inference.dim(table, 1)), *(fixed_axes(other.shape) for other in others)]


def _index_select(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    x, ids = tensor(named["self"]), tensor(named["index"])
    place = axis(named["dim"], rank(x))
    inference.pin_dims(x, (place,), "indices point into it")
    axes = inference.axes(x)
    return (*axes[:place], *(inference.axes(ids) or ((),)), *axes[place + 1 :])


def _index(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    """x[i, :, j]: dimensions with an index go, those of the indices come in the place of the first, or in front if apart."""
    x = tensor(named["self"])
    given = [(place, tensor(index)) for place, index in enumerate(named["indices"]) if index is not None]
    places = [place for place, _ in given]
    masks = [index for _, index in given if index.meta["val"].dtype in (torch.bool, torch.uint8)]
    inference.pin_dims(x, places, "indices point into it", inner=True)
    if masks:
        inference.pin_dims(x, range(rank(x)), "a mask picks elements of it")
        return fixed_axes(result_sizes(node))
    sizes = result_sizes(node)
    count = len(sizes) - (rank(x) - len(places))
    is_together = places == list(range(places[0], places[0] + len(places)))
    first = places[0] if is_together else 0
    picked = inference.broadcast([index for _, index in given], sizes[first : first + count])
    rest: Axes = tuple(inference.dim(x, index) for index in range(rank(x)) if index not in places)
    return (*rest[:first], *picked, *rest[first:])


def _gather(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    x, ids = tensor(named["self"]), tensor(named.get("index", named.get("indices")))
    place = axis(named["dim"], rank(x))
    inference.pin_dims(x, (place,), "indices point into it")
    for index in range(rank(x)):
        if index != place and inference.shape(x)[index] != 1:
            same_size = inference.shape(x)[index] == inference.shape(ids)[index]
            if same_size:
                inference.tie(ids, index, inference.dim(x, index))
            else:
                inference.pin_dims(x, (index,), "indices cover a part of it")
    return inference.axes(ids)


RULES: dict[str, Rule] = {
    "embedding": _embedding,
    **each("embedding_bag _embedding_bag _embedding_bag_forward_only", _embedding_bag),
    "index_select": _index_select,
    "index": _index,
    "gather": _gather,
}
