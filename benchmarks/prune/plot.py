"""The frontier of accuracy against parameters, as an SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import Row

WIDTH, HEIGHT, MARGIN = 480, 300, 48
COLOURS = {
    "pruned": "#1f6feb",
    "uniform": "#8a8a8a",
    "scratch": "#c77700",
    "scratch-e": "#b35900",
    "int8": "#1a7f37",
    "float": "#000000",
}
LINES = ("pruned", "uniform")


def frontier(rows: Sequence[Row], network: str) -> str:
    """Return a drawing of the rows of a network: lines for methods with several sizes, dots for all; parameters on a log axis."""
    own = [row for row in rows if row["network"] == network]
    sizes = [math.log10(row["parameters"]) for row in own]
    scores = [row["accuracy"] for row in own]
    low, high = min(scores) - 1, max(scores) + 1
    left, right = min(sizes) - 0.05, max(sizes) + 0.05

    def place(row: Row) -> tuple[float, float]:
        x = MARGIN + (math.log10(row["parameters"]) - left) / (right - left) * (WIDTH - 2 * MARGIN)
        return round(x, 1), round(HEIGHT - MARGIN - (row["accuracy"] - low) / (high - low) * (HEIGHT - 2 * MARGIN), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{MARGIN}" y="18">{network}: accuracy in percent against parameters</text>',
        f'<path d="M{MARGIN} {MARGIN}V{HEIGHT - MARGIN}H{WIDTH - MARGIN}" fill="none" stroke="#888"/>',
    ]
    for score in range(math.ceil(low), math.floor(high) + 1, max(1, round((high - low) / 6))):
        y = HEIGHT - MARGIN - (score - low) / (high - low) * (HEIGHT - 2 * MARGIN)
        parts.append(f'<text x="{MARGIN - 6}" y="{y + 4:.1f}" text-anchor="end">{score}</text>')
    for row in own:
        x, y = place(row)
        parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{COLOURS[row["method"]]}"/>')
        if row["method"] in ("float", "pruned"):
            parts.append(f'<text x="{x}" y="{HEIGHT - MARGIN + 16}" text-anchor="middle">{row["parameters"]:,}</text>')
    for method in LINES:
        points = sorted(place(row) for row in own if row["method"] in (method, "float"))
        path = " ".join(f"{x},{y}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[method]}"/>')
    for number, (method, colour) in enumerate(COLOURS.items()):
        parts.append(
            f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - MARGIN - 14 * number - 6}" text-anchor="end" fill="{colour}">{method}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def write_frontiers(rows: Sequence[Row], folder: Path) -> None:
    """Write NETWORK.svg for each network of the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for network in dict.fromkeys(row["network"] for row in rows):
        (folder / f"{network}.svg").write_text(frontier(rows, network), encoding="utf-8")
