"""The rules by operator, one file a family. An operator that is in none of them pins the axes of its operands."""

from torch import fx

from dsopt.passes.prune.rules import (
    attention,
    convolution,
    creation,
    elementwise,
    indexing,
    norms,
    pooling,
    products,
    recurrent,
    reductions,
    relayout,
    sizes,
)
from dsopt.passes.prune.rules.base import Resize, Result, Rule, Unknown, Widths, packet_name

RULES: dict[str, Rule] = {
    **elementwise.RULES,
    **products.RULES,
    **convolution.RULES,
    **norms.RULES,
    **pooling.RULES,
    **relayout.RULES,
    **reductions.RULES,
    **indexing.RULES,
    **creation.RULES,
    **attention.RULES,
    **recurrent.RULES,
}
"""Operator -> how its dimensions hang together. Operators that torch tags as pointwise need no line."""

RESIZES: dict[str, Resize] = {
    **convolution.RESIZES,
    **norms.RESIZES,
    **pooling.RESIZES,
    **sizes.RESIZES,
    **attention.RESIZES,
}
"""Operator -> how sizes in its arguments are written anew."""


def rule_of(node: fx.Node) -> Rule | None:
    """Return the rule of an operator, None if there is none."""
    found = RULES.get(packet_name(node))
    return elementwise.pointwise if found is None and elementwise.is_pointwise(node) else found


__all__ = ["RESIZES", "RULES", "Resize", "Result", "Rule", "Unknown", "Widths", "packet_name", "rule_of"]
