"""Search for the fewest operators that must stay at a higher precision for the metric to hold.

Precisions are tried in turn: 8-bit weights where they have 4 bits, 16-bit results, and, if allowed, float. At each, the k most
sensitive operators get it; the least sufficient k is found by bisection, which takes the metric to fall with k.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from dsopt.accuracy.sensitivity import LayerSensitivity
from dsopt.passes.base import Pass

FALLBACKS = ("none", "int16", "float")
"""How far the search may go."""


@dataclass(frozen=True)
class Candidate:
    """Options of quantisation that were found: those that differ from the given ones, and what they mean for which operator."""

    options: dict[str, Any]
    kept: dict[str, str]


def ladder(quantizer: Pass, fallback: str) -> list[tuple[str, str]]:
    """Return (option, name of the precision) in the order in which they are tried for a quantize or quantize-prepare pass."""
    steps: list[tuple[str, str]] = []
    if fallback == "none":
        return steps
    if getattr(quantizer, "weights", 8) == 4 or getattr(quantizer, "int4", ""):
        steps.append(("int8", "8-bit weights"))
    if getattr(quantizer, "activations", 8) == 8:
        steps.append(("int16", "16-bit results"))
    if fallback == "float":
        steps.append(("keep", "float"))
    return steps


def candidates(
    quantizer: Pass, layers: Sequence[LayerSensitivity], fallback: str, is_good: Callable[[Pass], bool]
) -> Candidate | None:
    """Return the first candidate that `is_good` accepts with the fewest operators raised; None if there is none."""
    base = quantizer
    kept: dict[str, str] = {}
    for option, name in ladder(quantizer, fallback):
        if not is_good(_raised(base, option, layers)):
            if option == "int8":  # wider weights alone do not do; they stay, and results follow
                base, kept = _raised(base, option, layers), {each.node: name for each in layers}
            continue
        low, high = 1, len(layers)
        while low < high:
            middle = (low + high) // 2
            if is_good(_raised(base, option, layers[:middle])):
                high = middle
            else:
                low = middle + 1
        chosen = _raised(base, option, layers[:high])
        return Candidate(_difference(quantizer, chosen), kept | {each.node: name for each in layers[:high]})
    return None


def _raised(quantizer: Pass, option: str, layers: Sequence[LayerSensitivity]) -> Pass:
    before = str(getattr(quantizer, option))
    names = [part for part in before.split("|") if part] + [each.node for each in layers]
    changed: Pass = replace(quantizer, **{option: "|".join(dict.fromkeys(names))})
    return changed


def _difference(before: Pass, after: Pass) -> dict[str, Any]:
    return {
        item.name: getattr(after, item.name)
        for item in fields(after)
        if getattr(after, item.name) != getattr(before, item.name)
    }
