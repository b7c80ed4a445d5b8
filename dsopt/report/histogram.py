"""The histogram of a value as SVG: bars, the range that the grid can hold, and what lies beyond it."""

from __future__ import annotations

import math

from dsopt.report.entries import RoundedValue
from dsopt.report.fields import Range
from dsopt.report.markup import html, plain

_WIDTH, _HEIGHT, _BASE = 360, 140, 104
_TOP, _SIDE = 8, 8


def histogram(value: RoundedValue) -> str:
    """Return the histogram of a value; "" where it has none. Heights are square roots of counts, so that rare values are seen."""
    if not any(value.histogram):
        return ""
    limit = (1 << (min(value.bits, 32) - 1)) - 1
    seen: Range = (-limit - 0.5, limit + 0.5) if value.is_weight else value.observed
    grid: Range = (-float(limit), float(limit)) if value.is_weight else value.grid
    low, high = min(seen[0], grid[0]), max(seen[1], grid[1])
    span = (high - low) or 1.0

    def x(number: float) -> float:
        return _SIDE + (_WIDTH - 2 * _SIDE) * (number - low) / span

    words = _words(value)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html(words)}">',
        f"<title>{html(words)}</title>",
        *_bars(value, seen, grid, x),
        f'<line class="axis" x1="{_SIDE}" y1="{_BASE}" x2="{_WIDTH - _SIDE}" y2="{_BASE}"/>',
        f'<path class="grid" d="M{x(grid[0]):.1f} {_BASE + 4}v6H{x(grid[1]):.1f}v-6"/>',
        _label(x(grid[0]), "start", grid[0]),
        _label(x(grid[1]), "end", grid[1]),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _words(value: RoundedValue) -> str:
    unit = "integers" if value.is_weight else "values"
    kind = "weight" if value.is_weight else "activation"
    return f"Histogram of the {unit} of {value.name} ({kind}, {value.bits} bits)"


def _bars(value: RoundedValue, seen: Range, grid: Range, x: object) -> list[str]:
    assert callable(x)
    width = (seen[1] - seen[0]) / len(value.histogram)
    tallest = math.sqrt(max(value.histogram))
    bars = []
    for number, count in enumerate(value.histogram):
        if count == 0:
            continue
        left, right = seen[0] + number * width, seen[0] + (number + 1) * width
        middle = (left + right) / 2
        is_beyond = not value.is_weight and not grid[0] <= middle <= grid[1]
        height = max((_BASE - _TOP) * math.sqrt(count) / tallest, 1.0)
        start, end = float(x(left)), float(x(right))
        bars.append(
            f'<rect class="{"beyond" if is_beyond else "bar"}" x="{start:.1f}" y="{_BASE - height:.1f}" '
            f'width="{max(end - start - 0.5, 0.8):.1f}" height="{height:.1f}"/>'
        )
    return bars


def _label(x: float, anchor: str, number: float) -> str:
    place = min(max(x, _SIDE), _WIDTH - _SIDE)
    return f'<text x="{place:.1f}" y="{_BASE + 26}" text-anchor="{anchor}">{html(plain(number))}</text>'
