"""Sums, means, softmax and other operators over whole dimensions.

A sum or a mean over channels is one over the channels that are there. What picks an element or depends on the order of the elements
keeps the dimension.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from dsopt.passes.prune.axes import fixed
from dsopt.passes.prune.rules.base import Named, Result, Rule, axis, axis_list, each, rank, tensor

if TYPE_CHECKING:
    from dsopt.passes.prune.inference import AxisInference


def _reduced(inference: AxisInference, node: fx.Node, x: fx.Node, dims: tuple[int, ...], keepdim: bool) -> Result:
    axes = inference.axes(x)
    out = tuple(
        () if index in dims else expr for index, expr in enumerate(axes) if keepdim or index not in dims
    )  # fmt: skip
    value = node.meta["val"]
    return [out] * len(value) if isinstance(value, (tuple, list)) else out


def _sum(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    x = tensor(named["self"])
    dims = axis_list(named.get("dim"), rank(x))
    inference.uses_statistics(*(inference.dim(x, dim) for dim in dims))
    return _reduced(inference, node, x, dims, bool(named.get("keepdim", False)))


def _total(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    """A sum, unlike a mean or a variance, is the same without what is zero, and another without what is not."""
    x = tensor(named["self"])
    for dim in axis_list(named.get("dim"), rank(x)):
        inference.sums_over(inference.dim(x, dim), x)
    return _sum(inference, node, named)


def _pick(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    """max, argmax, prod and the like: one element may decide, so none may go."""
    x = tensor(named["self"])
    if named.get("other") is not None:
        return inference.broadcast([x, tensor(named["other"])], tuple(node.meta["val"].shape))
    dims = axis_list(named.get("dim"), rank(x))
    inference.pin_dims(x, dims, "one element of it decides")
    return _reduced(inference, node, x, dims, bool(named.get("keepdim", False)))


def _along(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    """Softmax and cumulative sums: of the shape of the operand, and each element depends on all of the dimension."""
    x = tensor(named["self"])
    dims = axis_list(named.get("dim", -1), rank(x))
    inference.pin_dims(x, dims, "each element of it depends on all")
    axes = inference.axes(x)
    value = node.meta["val"]
    return [axes] * len(value) if isinstance(value, (tuple, list)) else axes


def _triangle(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    """Zero on one side of the diagonal of the last two dimensions."""
    x = tensor(named["self"])
    inference.pin_dims(x, (-2, -1), "its elements are kept by their places")
    return inference.axes(x)


def _top(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    x = tensor(named["self"])
    place = axis(named["dim"], rank(x))
    inference.pin_dims(x, (place,), "some elements of it are picked")
    axes = inference.axes(x)
    found = (*axes[:place], fixed(node.meta["val"][0].shape[place]), *axes[place + 1 :])
    return [found, found]


def _similarity(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    a, b = tensor(named["x1"]), tensor(named["x2"])
    dims = max(rank(a), rank(b))
    place = axis(named["dim"], dims)
    shapes = (inference.shape(a), inference.shape(b))
    sizes = [max((s[i - dims] for s in shapes if len(s) >= dims - i), key=lambda size: size != 1) for i in range(dims)]
    axes = inference.broadcast([a, b], sizes)
    inference.sums_over(axes[place], a)  # of each its own length is taken, too
    inference.sums_over(axes[place], b)
    return (*axes[:place], *axes[place + 1 :])


RULES: dict[str, Rule] = {
    **each("mean var std var_mean std_mean", _sum),
    **each("sum nansum linalg_vector_norm norm frobenius_norm", _total),
    **each("max min amax amin argmax argmin prod any all logsumexp median mode nanmean aminmax", _pick),
    **each(
        "softmax log_softmax _softmax _log_softmax _safe_softmax cumsum cumprod logcumsumexp cummax cummin sort argsort",
        _along,
    ),
    **each("tril triu", _triangle),
    "topk": _top,
    "cosine_similarity": _similarity,
}
