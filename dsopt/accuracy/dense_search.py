"""Search for the fewest layers whose attention must stay dense for the metric to hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dsopt.ir import Program
from dsopt.ir.torch_private import named_arguments
from dsopt.ops.sparse_attention import OPERATOR
from dsopt.passes.base import Pass, PassContext
from dsopt.passes.sparse_attention.guard import measure


def by_loss(program: Program, context: PassContext) -> list[str]:
    """Return the modules with sparse attention, those first whose attention is furthest from dense on the calibration data."""
    budgets: dict[Any, list[float]] = {}
    for node in program.graph.nodes:
        if node.target is OPERATOR:
            given = list(named_arguments(node)["budget"])
            budgets[node] = given if len(given) > 1 else given * node.meta["val"].shape[1]
    if not budgets:
        return []
    errors = measure(
        program, context, {node: sorted({each for each in of if each >= 0}) for node, of in budgets.items()}
    )
    worst: dict[str, float] = {}
    for node, of in budgets.items():
        layer = program.layer(node)
        worst[layer] = max(worst.get(layer, 0.0), errors[node].of_layer(of))
    return sorted(worst, key=lambda layer: (-worst[layer], layer))


def keep_dense(sparse: Pass, layers: list[str]) -> Pass:
    """Return the sparse-attention pass with more modules that stay dense."""
    before = [part for part in str(getattr(sparse, "keep", "")).split("|") if part]
    kept: Pass = replace(sparse, **{"keep": "|".join(dict.fromkeys([*before, *layers]))})
    return kept


def fewest(layers: list[str], is_good: Callable[[list[str]], bool]) -> list[str] | None:
    """Return the least number of first layers that is good, by bisection; None if all of them are not."""
    if not is_good(layers):
        return None
    low, high = 1, len(layers)
    while low < high:
        middle = (low + high) // 2
        if is_good(layers[:middle]):
            high = middle
        else:
            low = middle + 1
    return layers[:high]
