"""Charts over the layers of a program, in the order in which they run: an axis that they share, and bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dsopt.report.markup import html, plain

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 960, 84, 12, 10, 34
_MOST_BARS = 480
"""More layers than this share bars: those would be narrower than two pixels."""
_BAR_HEIGHT = 110
_TICKS = 8


@dataclass(frozen=True)
class Timeline:
    """The axis: a column for each of `steps` layers, numbered from 0."""

    steps: int

    def x(self, step: int) -> float:
        """Return where the column of a layer begins; of the number after the last one, where the chart ends."""
        return LEFT + (WIDTH - LEFT - RIGHT) * step / max(self.steps, 1)

    def axis(self, base: float) -> list[str]:
        """Return the line under the columns, and the numbers of some of them."""
        step = max(1, -(-self.steps // _TICKS))
        parts = [f'<line class="axis" x1="{LEFT}" y1="{base:.1f}" x2="{WIDTH - RIGHT}" y2="{base:.1f}"/>']
        for number in range(0, self.steps, step):
            middle = (self.x(number) + self.x(number + 1)) / 2
            parts.append(f'<text x="{middle:.1f}" y="{base + 15:.1f}" text-anchor="middle">{number}</text>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(f'<text x="{middle:.1f}" y="{base + 30:.1f}" text-anchor="middle">layer</text>')
        return parts


def scale_labels(most: int, top: float, base: float) -> list[str]:
    """Return the numbers beside a chart: 0 at its base, and the largest at its top."""
    x = LEFT - 6
    return [
        f'<text x="{x}" y="{base:.1f}" text-anchor="end">0</text>',
        f'<text x="{x}" y="{top + 9:.1f}" text-anchor="end">{html(plain(most))}</text>',
    ]


def bars(caption: str, unit: str, names: Sequence[str], values: Sequence[int], is_sum: bool) -> str:
    """Return a bar for each layer, with its name and value as title; "" where all are 0.

    is_sum: what a bar shows where layers share one: the sum of their values, or else the largest.
    """
    if not any(values):
        return ""
    line = Timeline(len(values))
    each = -(-len(values) // _MOST_BARS)
    groups = [range(first, min(first + each, len(values))) for first in range(0, len(values), each)]
    heights = [(sum if is_sum else max)(values[n] for n in group) for group in groups]
    base, most = TOP + _BAR_HEIGHT, max(heights)
    shapes = []
    for group, value in zip(groups, heights, strict=True):
        left, right = line.x(group[0]), line.x(group[-1] + 1)
        height = _BAR_HEIGHT * value / most
        who = f"{group[0]} {names[group[0]]}" if len(group) == 1 else f"layers {group[0]} to {group[-1]}"
        shapes.append(
            f'<rect class="bar" x="{left:.2f}" y="{base - height:.2f}" width="{max((right - left) * 0.9, 0.8):.2f}" '
            f'height="{height:.2f}"><title>{html(f"{who}: {plain(value)} {unit}")}</title></rect>'
        )
    parts = [*shapes, *line.axis(base), *scale_labels(most, TOP, base)]
    return drawing(caption, base + BOTTOM, parts)


def drawing(caption: str, height: float, parts: Sequence[str]) -> str:
    """Return a figure with a caption, which is also what it is called where it cannot be seen."""
    body = "\n".join(parts)
    return (
        f'<figure class="chart"><figcaption>{html(caption)}</figcaption>\n<div class="wide">'
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{html(caption)}">\n{body}\n</svg></div></figure>\n'
    )
