"""Operators that compute each element from those in the same place: their operands are kept alike, as broadcasting aligns them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from dsopt.passes.prune.axes import fixed
from dsopt.passes.prune.rules.base import Named, Result, Rule, axis, each, rank, result_sizes, tensor

if TYPE_CHECKING:
    from dsopt.passes.prune.inference import AxisInference


def pointwise(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    """Let all operands and the result be kept alike."""
    return inference.broadcast(inference.tensors(node), result_sizes(node))


def is_pointwise(node: fx.Node) -> bool:
    """Tell whether torch says of an operator that it works element by element."""
    return torch.Tag.pointwise in getattr(node.target, "tags", ())


def _first(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    """The operand itself, or its elements one by one: a second operand only says of which type or where."""
    return inference.axes(tensor(named["input"] if "input" in named else named["self"]))


def _like(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    return inference.axes(tensor(named["self"]))


def _prelu(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    """One slope for each channel, the second dimension."""
    x, weight = tensor(named["self"]), tensor(named["weight"])
    if rank(weight) == 1 and rank(x) > 1:
        inference.tie(weight, 0, inference.dim(x, 1))
    return inference.axes(x)


def _glu(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    """One half of the dimension gates the other."""
    x = tensor(named["self"])
    place = axis(named["dim"], rank(x))
    size = inference.shape(x)[place]
    axes = list(inference.axes(x))
    if not isinstance(size, int):
        return tuple(fixed(each) if i == place else axes[i] for i, each in enumerate(result_sizes(node)))
    low = inference.take(axes[place], 0, size // 2)
    inference.unify(low, inference.take(axes[place], size // 2, size))
    axes[place] = low
    return tuple(axes)


RULES: dict[str, Rule] = {
    **each(
        "where native_dropout fill copy masked_fill hardswish log_sigmoid hardsigmoid rrelu bernoulli isnan isinf isfinite __and__ __or__ "
        "__xor__ quantize_per_tensor dsopt.add_act",
        pointwise,
    ),
    **each(
        "dropout feature_dropout alpha_dropout feature_alpha_dropout clone contiguous to _to_copy type_as detach alias lift_fresh_copy "
        "float half double",
        _first,
    ),
    **each("zeros_like ones_like full_like empty_like rand_like randn_like", _like),
    "prelu": _prelu,
    "glu": _glu,
}
