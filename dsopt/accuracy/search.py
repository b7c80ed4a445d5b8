"""Search for the fewest operators that must stay at a higher precision for the metric to hold.

Precisions are tried in turn: 8-bit weights where they have 4 bits, 16-bit results, and, if allowed, float. Once all that a step
can raise is enough, the least sufficient number of the most sensitive operators is found by bisection, which takes the metric to
fall with it, and single ones are tried without; then the same for the steps before, whose operators had all been raised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from dsopt.accuracy.sensitivity import LayerSensitivity
from dsopt.passes.base import Pass

FALLBACKS = ("none", "int16", "float")
"""How far the search may go."""

_TAKEN_BACK = 8
"""Operators of a step that are tried without, one by one: each costs a calibration and a run on all samples."""

Layers = tuple[LayerSensitivity, ...]


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
    """Return options that `is_good` accepts, with few operators raised; None if raising all of them is not enough."""
    steps = ladder(quantizer, fallback)
    raised: dict[str, Layers] = {}
    for option, _ in steps:
        raised[option] = tuple(each for each in layers if _can_raise(option, each))
        if raised[option] and is_good(_raised(quantizer, raised)):
            break
    else:
        return None
    last = option
    for option in reversed(raised):
        _bisect(quantizer, raised, option, int(option == last), is_good)
        _take_back(quantizer, raised, option, is_good)
    kept: dict[str, list[str]] = {}
    for option, name in steps:
        for each in raised.get(option, ()):
            kept.setdefault(each.node, []).append(name)
    names = {node: found[-1] if found[-1] == "float" else ", ".join(found) for node, found in kept.items()}
    return Candidate(_difference(quantizer, _raised(quantizer, raised)), names)


def _can_raise(option: str, layer: LayerSensitivity) -> bool:
    """Tell whether an option changes anything of an operator."""
    return {"int8": layer.weight_bits == 4, "int16": layer.result_bits == 8}.get(option, True)


def _bisect(
    quantizer: Pass, raised: dict[str, Layers], option: str, least: int, is_good: Callable[[Pass], bool]
) -> None:
    """Leave the fewest of the operators that an option raises, at least `least`. All of them are known to be enough."""
    low, high = least, len(raised[option])
    everything = raised[option]
    while low < high:
        middle = (low + high) // 2
        if is_good(_raised(quantizer, {**raised, option: everything[:middle]})):
            high = middle
        else:
            low = middle + 1
    raised[option] = everything[:high]


def _take_back(quantizer: Pass, raised: dict[str, Layers], option: str, is_good: Callable[[Pass], bool]) -> None:
    """Try without single operators. The last one is needed: without it, bisection found too few."""
    for each in raised[option][-2 : -2 - _TAKEN_BACK : -1]:
        fewer = {**raised, option: tuple(layer for layer in raised[option] if layer is not each)}
        if is_good(_raised(quantizer, fewer)):
            raised.update(fewer)


def _raised(quantizer: Pass, raised: dict[str, Layers]) -> Pass:
    floats = {each.node for each in raised.get("keep", ())}
    options = {}
    for option, layers in raised.items():
        before = [part for part in str(getattr(quantizer, option)).split("|") if part]
        names = [each.node for each in layers if option == "keep" or each.node not in floats]
        options[option] = "|".join(dict.fromkeys([*before, *names]))
    changed: Pass = replace(quantizer, **options)
    return changed


def _difference(before: Pass, after: Pass) -> dict[str, Any]:
    return {
        item.name: getattr(after, item.name)
        for item in fields(after)
        if getattr(after, item.name) != getattr(before, item.name)
    }
