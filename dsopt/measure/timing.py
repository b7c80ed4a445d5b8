"""Time several calls in one interleaved run, and say how sure the ratios between them are."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Progress = Callable[[int, int, str], None]

WARM_UP_ROUNDS = 3
MIN_ROUNDS = 20
MAX_ROUNDS = 5000


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: percentiles over `runs` calls."""

    name: str
    runs: int
    p50_ms: float
    p90_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Ratio:
    """Time of the first over that of `peer`: the median over pairs of calls, and its 95 % confidence interval."""

    peer: str
    ratio: float
    low: float
    high: float


def interleave(
    calls: Mapping[str, Callable[[], Any]],
    *,
    seconds: float,
    between: Callable[[], Any] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, list[float]]:
    """Call each once a round, in an order shuffled anew, until `seconds` are over. Returns {name: milliseconds of each round}.

    Whatever slows the machine down for a while hits all of them alike. between: called before each round, untimed.
    """
    order, shuffler = list(calls), random.Random(seed)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(WARM_UP_ROUNDS):
        if between:
            between()
        for name in order:
            calls[name]()
    start = time.perf_counter()
    for number in range(MAX_ROUNDS):
        elapsed = time.perf_counter() - start
        if number >= MIN_ROUNDS and elapsed >= seconds:
            break
        if progress:
            progress(min(int(100 * elapsed / max(seconds, 1e-9)), 100), 100, "timing")
        if between:
            between()
        shuffler.shuffle(order)
        for name in order:
            before = time.perf_counter_ns()
            calls[name]()
            taken[name].append((time.perf_counter_ns() - before) / 1e6)
    return taken


def timing(name: str, milliseconds: Sequence[float]) -> Timing:
    """Return the percentiles of measured calls."""
    ordered = sorted(milliseconds)
    return Timing(name, len(ordered), *(percentile(ordered, ratio) for ratio in (0.5, 0.9, 0.99)))


def percentile(ordered: Sequence[float], ratio: float) -> float:
    """Return the value that `ratio` of the sorted values do not exceed (the nearest rank)."""
    return ordered[max(0, math.ceil(ratio * len(ordered)) - 1)]


def paired_ratio(peer: str, ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Return the median of ours/theirs over pairs of calls of one round, with the 95 % interval of a median by ranks.

    The ranks n/2 -+ 1.96 sqrt(n)/2 enclose the median whatever the distribution is: Conover, Practical Nonparametric
    Statistics, 3.2. Calls are disturbed now and then, so that a mean and its deviation would mislead.
    """
    ratios = sorted(mine / other for mine, other in zip(ours, theirs, strict=True))
    count = len(ratios)
    reach = 1.96 * math.sqrt(count) / 2
    low = ratios[max(0, math.floor(count / 2 - reach))]
    high = ratios[min(count - 1, math.ceil(count / 2 + reach))]
    return Ratio(peer, percentile(ratios, 0.5), low, high)
