"""Choose the channels that go: an order by importance, and how far to follow it.

Channels go in bundles, so that what is left of a group is a multiple of what the alignment asks for. The order says which bundle goes
first; the longest beginning of it that does not remove too much is found by bisection, because every further bundle removes more.
Where the cost is that of code, a width that fits the machine less well may take more than a larger one: it is looked at in steps
along the order, and bisected within the first step that reaches far enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import ClassVar, Literal, Protocol

import numpy as np

from dsopt.passes.prune.channels import Channels, Group, Keep
from dsopt.passes.prune.slots import Ids
from dsopt.passes.prune.sums import Sums

Scope = Literal["global", "local"]

TOLERANCE = 0.005
"""A ratio is met if it is met within half a point."""

_ATTEMPTS = 200
"""Bundles behind the point where the bisection ends that are tried one by one."""


_STEPS = 16
"""Places along the order at which code is measured, up to the one that is small enough."""


@dataclass(frozen=True)
class Choice:
    """The channels to keep, and the share of the cost that goes with the others. most: the largest share that could go."""

    keep: Keep
    ratio: float
    most: float = 0.0


def bundles_in_order(
    channels: Channels, scores: Sums, scope: Scope, align: int, frozen: Keep
) -> Sequence[Ids]:  # fmt: skip
    """Return the bundles that may go, the one that matters least first.

    global: by score, across all groups.  local: so that at each point about the same share of every group has gone.
    frozen: channels that stay. The best channels of every row of indices stay, too: no layer loses all.
    """
    protected = frozen | _protected(channels, scores)
    found: list[tuple[float, int, Ids]] = []
    for number, group in enumerate(channels.groups):
        order = group.channels[np.argsort(scores[group.channels], kind="stable")]
        unit = alignment_unit(channels, group, align)
        first = len(order) % unit or unit
        for high in range(first, len(order) + 1 - (unit if unit > 1 else 0), unit):
            bundle = order[max(high - unit, 0) : high]
            if not protected[bundle].any():
                key = float(scores[bundle].mean()) if scope == "global" else high / len(order)
                found.append((key, number, bundle))
    return [bundle for _, _, bundle in sorted(found, key=lambda item: item[:2])]


def _protected(channels: Channels, scores: Sums) -> Keep:
    """Keep the index of each row whose least channel matters most."""
    result = np.zeros(channels.count + 1, np.bool_)
    padded = np.append(scores, np.inf)
    of_cell = padded[channels.cells].min(axis=1)
    for row in channels.rows:
        result[channels.cells[row[np.argmax(of_cell[row])]]] = True
    return result[: channels.count]


def alignment_unit(channels: Channels, group: Group, align: int) -> int:
    """Return how many channels of a group go at once, so that every dimension they are in stays a multiple of `align`.

    A channel that stands for a run of indices, such as a head, brings the length of the run with it.
    """
    unit = 1
    for use in group.uses:
        has_it = (channels.cells[channels.rows[use.row]] == group.channels[0]).any(axis=1)
        start = int(np.argmax(has_it))
        stops = np.flatnonzero(~has_it[start:])
        run = int(stops[0]) if len(stops) else len(has_it) - start
        unit = max(unit, align // gcd(align, run * use.inner))
    return unit


class Objective(Protocol):
    """What is to become smaller. refines: it falls with every bundle, and is cheap enough to try them one by one."""

    channels: Channels
    refines: ClassVar[bool]

    @property
    def total(self) -> float:
        """Return the cost of the program as it is."""

    def __call__(self, keep: Keep) -> float:
        """Return the cost where these channels are kept."""


def choose(cost: Objective, bundles: Sequence[Ids], ratio: float) -> Choice:
    """Follow the order until `ratio` of the cost is gone, as near as it goes; the caller sees how near that is."""
    if not cost.refines:
        return _scanned(cost, bundles, ratio)
    most = removed(cost, kept_without(cost.channels, bundles))
    low, high = 0, len(bundles)
    while low < high:
        middle = (low + high + 1) // 2
        if removed(cost, kept_without(cost.channels, bundles[:middle])) <= ratio:
            low = middle
        else:
            high = middle - 1
    keep = kept_without(cost.channels, bundles[:low])
    best = Choice(keep, removed(cost, keep))
    candidates = [best]
    for bundle in bundles[low : low + (_ATTEMPTS if cost.refines else 1)]:
        if abs(best.ratio - ratio) <= TOLERANCE / 5:
            break
        keep = best.keep.copy()
        keep[bundle] = False
        tried = Choice(keep, removed(cost, keep))
        candidates.append(tried)
        if tried.ratio <= ratio:
            best = tried
    return replace(min(candidates, key=lambda choice: abs(choice.ratio - ratio)), most=most)


def _scanned(cost: Objective, bundles: Sequence[Ids], ratio: float) -> Choice:
    """Return the nearest of what is looked at, the one with most channels of equals."""
    seen: list[Choice] = []

    def look(count: int) -> float:
        keep = kept_without(cost.channels, bundles[:count])
        seen.append(Choice(keep, removed(cost, keep)))
        return seen[-1].ratio

    look(0)
    low = high = 0
    for step in range(1, _STEPS + 1):
        high = len(bundles) * step // _STEPS
        if high > low and look(high) >= ratio:
            break
        low = high
    while high - low > 1 and all(abs(choice.ratio - ratio) > TOLERANCE / 5 for choice in seen):
        middle = (low + high) // 2
        low, high = (low, middle) if look(middle) >= ratio else (middle, high)
    nearest = min(seen, key=lambda choice: (abs(choice.ratio - ratio), -int(choice.keep.sum())))
    return replace(nearest, most=max(choice.ratio for choice in seen))


def kept_without(channels: Channels, gone: Sequence[Ids]) -> Keep:
    """Tell of each channel whether it is in none of these bundles."""
    keep = np.ones(channels.count, np.bool_)
    if gone:
        keep[np.concatenate(gone)] = False
    return keep


def removed(cost: Objective, keep: Keep) -> float:
    """Return the share of the cost that goes with the channels that are not kept."""
    return 1 - cost(keep) / cost.total if cost.total else 0.0
