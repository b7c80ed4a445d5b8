"""How much flash fast kernels may take: what `--optimize` chooses."""

from __future__ import annotations

from dataclasses import dataclass


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
