"""Work and time against the length of the sequence, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.harness import Row

WIDTH, HEIGHT, MARGIN = 480, 300, 56
COLOURS = ("#1f6feb", "#1a7f37", "#c77700", "#8a8a8a", "#7d3fb2")

Line = Sequence[tuple[float, float]]
"""(n, number) of each point, both above 0."""


def chart(title: str, lines: Mapping[str, Line]) -> str:
    """Return a drawing with both axes logarithmic."""
    points = [point for line in lines.values() for point in line]
    (left, right), (low, high) = (_range([math.log2(point[axis]) for point in points]) for axis in (0, 1))

    def x(n: float) -> float:
        return round(MARGIN + (math.log2(n) - left) / (right - left) * (WIDTH - 2 * MARGIN), 1)

    def y(number: float) -> float:
        return round(HEIGHT - MARGIN - (math.log2(number) - low) / (high - low) * (HEIGHT - 2 * MARGIN), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{MARGIN}" y="18">{title}</text>',
        f'<path d="M{MARGIN} {MARGIN}V{HEIGHT - MARGIN}H{WIDTH - MARGIN}" fill="none" stroke="#888"/>',
    ]
    for n in sorted({point[0] for point in points}):
        parts.append(f'<text x="{x(n)}" y="{HEIGHT - MARGIN + 16}" text-anchor="middle">{_short(n)}</text>')
    for power in range(math.ceil(low * math.log10(2)), math.floor(high * math.log10(2)) + 1):
        parts.append(f'<text x="{MARGIN - 6}" y="{y(10.0**power) + 4:.1f}" text-anchor="end">1e{power}</text>')
    for number, (name, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x(n)},{y(value)}" for n, value in sorted(line))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}"/>')
        parts += [f'<circle cx="{x(n)}" cy="{y(value)}" r="2.5" fill="{colour}"/>' for n, value in line]
        parts.append(f'<text x="{MARGIN + 10}" y="{MARGIN + 4 + 14 * number}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _range(numbers: Sequence[float]) -> tuple[float, float]:
    return min(numbers) - 0.2, max(numbers) + 0.2


def _short(n: float) -> str:
    return f"{n / 1024:g}k" if n >= 1024 else f"{n:g}"


def write_charts(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write work.svg, and time-TARGET.svg for each target that was timed; returns what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    counted = [row for row in rows if row["measure"] == "work"]
    if counted:
        lines = {f"{tile} queries a tile": _line(counted, "total", tile=tile) for tile in _each(counted, "tile")}
        lines["dense"] = _line(counted, "dense", tile=counted[0]["tile"])
        written.append(_write(folder / "work.svg", chart("multiply-adds of a head of 64 against keys", lines)))
    timed = [row for row in rows if row["measure"] == "speed" and row.get("seconds")]
    for target in _each(timed, "target"):
        own = [row for row in timed if row["target"] == target]
        lines = {}
        for threads in _each(own, "threads"):
            kind = "" if threads is None else f", {threads} threads"
            lines[f"sparse{kind}"] = _line(own, "seconds", threads=threads)
            lines[f"best dense{kind}"] = _line(own, "peer_seconds", threads=threads)
        lines = {name: line for name, line in lines.items() if line}
        written.append(_write(folder / f"time-{target}.svg", chart(f"seconds against keys, {target}", lines)))
    return written


def _each(rows: Sequence[Row], name: str) -> list[object]:
    return list(dict.fromkeys(row.get(name) for row in rows))


def _line(rows: Sequence[Row], number: str, **wanted: object) -> Line:
    chosen = [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]
    return [(row["n"], row[number]) for row in chosen if row.get(number)]


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path
