"""Write an operator that has no lowering of its own as simpler ones, by tracing torch's own definition of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.export import default_decompositions
from torch.utils import _pytree as pytree

from dsopt.ir.torch_private import make_fx


def decompose(node: fx.Node) -> fx.GraphModule | None:
    """Return a functional graph that computes the node, its placeholders in the order of the node's tensor arguments.

    Sizes must be known. Returns None if torch has no simpler form.
    """
    leaves, structure = pytree.tree_flatten((node.args, dict(node.kwargs)))
    tensors = [leaf for leaf in leaves if _is_tensor(leaf)]

    def call(*values: torch.Tensor) -> Any:
        given = iter(values)
        filled = [next(given) if _is_tensor(leaf) else _constant(leaf) for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(filled, structure)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    table: Any = default_decompositions()
    examples = [torch.empty(leaf.meta["val"].shape, dtype=leaf.meta["val"].dtype, device="meta") for leaf in tensors]
    try:
        with torch.no_grad():
            traced = make_fx(torch.func.functionalize(call), decomposition_table=table, tracing_mode="fake")(*examples)
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return None
    calls = [each for each in traced.graph.nodes if each.op == "call_function"]
    return None if any(each.target is node.target for each in calls) else traced


def _is_tensor(leaf: object) -> bool:
    return isinstance(leaf, fx.Node) and isinstance(leaf.meta.get("val"), torch.Tensor)


def _constant(leaf: object) -> object:
    return leaf.meta["val"] if isinstance(leaf, fx.Node) else leaf
