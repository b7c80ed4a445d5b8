"""Tensors made in the graph: those that hold one value everywhere may have any size, those that count may not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from dsopt.passes.prune.axes import fixed
from dsopt.passes.prune.rules.base import Named, Result, Rule, each, fixed_axes, result_sizes

if TYPE_CHECKING:
    from dsopt.passes.prune.inference import AxisInference


def _uniform(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    sizes, given = result_sizes(node), named["size"]
    return tuple(
        inference.fresh(size) if isinstance(wanted, int) else fixed(size)
        for size, wanted in zip(sizes, given, strict=True)
    )


def _counted(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    return fixed_axes(result_sizes(node))


def _nothing(inference: AxisInference, node: fx.Node, named: Named) -> Result:
    """An assertion, or a size: it says nothing of channels."""
    return None


RULES: dict[str, Rule] = {
    **each("full zeros ones empty rand randn new_full new_zeros new_ones new_empty", _uniform),
    **each("arange eye linspace scalar_tensor tril_indices triu_indices randint randperm lift", _counted),
    **each("_assert_tensor_metadata _assert_scalar _assert_async sym_size sym_numel sym_stride sym_constrain_range_for_size item "
           "_local_scalar_dense sym_constrain_range", _nothing),
}  # fmt: skip
