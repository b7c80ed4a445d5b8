"""How a share of work is divided among heads: more for those that lose most without it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Head = TypeVar("Head", bound=Hashable)

LADDER = (0.35, 0.5, 0.75, 1.0, 1.4, 1.9, 2.5)
"""What a head may get, as parts of the share that is asked for."""

MOST = 0.6
"""The largest share that a head is given: with more, dense is as fast."""

_ROUNDING = 1e-9
"""What sums of shares may be off by."""


@dataclass(frozen=True)
class Step:
    """One budget of a head: the share of dense work that it takes, and the square of the error that is left."""

    budget: float
    share: float
    loss: float


def divide(heads: Mapping[Head, Sequence[Step]], share: float) -> dict[Head, int]:
    """Return which step each head gets so that the mean share is about `share` and the sum of losses is small.

    heads: steps of rising share.  Greedy: all begin with the first, and the head that gains most for its work goes on, until the work
    is spent (optimal where gains fall from step to step: Fox 1966, "Discrete optimization via marginal analysis").
    """
    chosen = dict.fromkeys(heads, 0)
    spent = sum(steps[0].share for steps in heads.values())
    allowed = share * len(heads) + _ROUNDING
    while spent < allowed - 2 * _ROUNDING:
        best = max(heads, key=lambda head: _gain(heads[head], chosen[head]), default=None)
        if best is None or _gain(heads[best], chosen[best]) <= 0:
            break
        steps, place = heads[best], chosen[best]
        spent += steps[place + 1].share - steps[place].share
        if spent > allowed:
            break
        chosen[best] = place + 1
    return chosen


def _gain(steps: Sequence[Step], place: int) -> float:
    if place + 1 >= len(steps):
        return -1.0
    more = steps[place + 1].share - steps[place].share
    return (steps[place].loss - steps[place + 1].loss) / max(more, 1e-9)


def enough(steps: Sequence[Step], place: int, is_good: Callable[[Step], bool]) -> int | None:
    """Return the first step from `place` on that is good, None if none is."""
    return next((number for number in range(place, len(steps)) if is_good(steps[number])), None)
