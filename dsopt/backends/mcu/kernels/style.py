"""How much flash fast kernels may take: what `--optimize` chooses."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Style:
    """What is traded for what. name: as the user has it."""

    name: str
    tolerance: float
    """How much slower than the fastest a loop may be, as a fraction, if it has a shorter turn."""
    longest_turn: int
    """Steps of a loop that are written one behind the other."""
    straight_steps: int
    """Steps that are written without a loop."""
    least_saving: float
    """Of the instructions of a layer, for which a second kernel is worth its bytes."""
    small_loops: bool
    """Whether loops around calls of kernels are compiled for size."""


STYLES = {
    style.name: style
    for style in (
        Style("speed", 0.0, 14, 12, 0.01, False),
        Style("balanced", 0.02, 14, 9, 0.03, True),
        Style("ram", 0.02, 14, 9, 0.03, True),
        Style("flash", 1.0, 2, 2, 1.0, True),
    )
}
"""Name -> style. "ram" differs from "balanced" in the plan of memory, not in kernels."""

BALANCED = STYLES["balanced"]
_SHORTEST_TURN = 2


def styles_for(optimize: str, has_dsp: bool) -> list[Style]:
    """Return the styles in which a layer may be written, that of `optimize` first.

    has_dsp: of the core; without it, portable bodies run, for which loops of pairs have no turns, and inputs that fill them up are
    of no use. Code that is made for flash has small loops everywhere.
    """
    first, speed = STYLES[optimize], STYLES["speed"]
    found = [first, *STYLES.values(), replace(speed, small_loops=True), replace(BALANCED, small_loops=False)]
    if not has_dsp:
        found = [replace(style, longest_turn=_SHORTEST_TURN) for style in found]
    if optimize == "flash":
        found = [replace(style, small_loops=True) for style in found]
    distinct: dict[Style, Style] = {}
    for style in found:
        distinct.setdefault(replace(style, name=""), style)
    return list(distinct.values())
