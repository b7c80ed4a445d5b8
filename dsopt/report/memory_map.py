"""The arena over time as SVG: layers in order to the right, bytes upwards, a rectangle for each buffer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dsopt.report.chip import Buffer, Chip
from dsopt.report.markup import html, plain
from dsopt.report.timeline import BOTTOM, LEFT, RIGHT, TOP, WIDTH, Timeline, drawing, scale_labels

MOST_SHAPES = 1000
"""Rectangles that are drawn; more buffers than these are joined."""

_HEIGHT = 300
_GAP = 16
_FARTHEST_LIMIT = 2
"""The limit is drawn if it is not more than this times the arena: else the buffers would be too flat to see."""


@dataclass(frozen=True)
class Shape:
    """Bytes `offset` to `end` during layers `first` to `last`, held by one buffer or by several."""

    offset: int
    end: int
    first: int
    last: int
    buffers: tuple[Buffer, ...]


def shapes(buffers: Sequence[Buffer], most: int = MOST_SHAPES) -> list[Shape]:
    """Return what to draw: a shape for each buffer, or, if these are more than `most`, for buffers that touch.

    Joined are those that touch in bytes and live at the same time; if that is not enough, with gaps of up to 16 bytes and in the same
    2 layers, then 48 bytes and 4 layers, and so on: what is drawn is too large by less than that.
    """
    found = [Shape(each.offset, each.offset + each.bytes, each.first, each.last, (each,)) for each in buffers]
    found.sort(key=lambda each: (each.first, each.offset, each.last, each.end, each.buffers[0].name))
    window = 1
    while len(found) > most:
        found = _joined(buffers, window)
        window *= 2
    return found


def _joined(buffers: Sequence[Buffer], window: int) -> list[Shape]:
    """Join buffers whose first and last layers are in the same windows, and that have less than `window` x 16 bytes between them."""
    together: dict[tuple[int, int], list[Buffer]] = {}
    for each in buffers:
        together.setdefault((each.first // window, each.last // window), []).append(each)
    found: list[Shape] = []
    for (first, last), group in sorted(together.items()):
        pile: list[Buffer] = []
        end = 0
        for each in sorted(group, key=lambda one: (one.offset, one.bytes, one.name)):
            if pile and each.offset > end + _GAP * (window - 1):
                found.append(Shape(pile[0].offset, end, first * window, (last + 1) * window - 1, tuple(pile)))
                pile = []
            end = max(end, each.offset + each.bytes) if pile else each.offset + each.bytes
            pile.append(each)
        found.append(Shape(pile[0].offset, end, first * window, (last + 1) * window - 1, tuple(pile)))
    return found


def memory_map(chip: Chip) -> str:
    """Return the map; "" without an arena."""
    if not chip.buffers or not chip.arena_bytes:
        return ""
    steps = max(len(chip.layers), 1)
    line = Timeline(steps)
    room = chip.arena_room
    is_limited = room is not None and room <= _FARTHEST_LIMIT * chip.arena_bytes
    most = max(chip.arena_bytes, room if is_limited and room is not None else 0)
    base = TOP + _HEIGHT

    def y(offset: int) -> float:
        return base - _HEIGHT * offset / most

    parts = [
        f'<rect class="arena" x="{LEFT}" y="{y(chip.arena_bytes):.2f}" width="{WIDTH - LEFT - RIGHT}" '
        f'height="{base - y(chip.arena_bytes):.2f}"/>'
    ]
    for number, shape in enumerate(shapes(chip.buffers)):
        left, right = line.x(shape.first), line.x(min(shape.last, steps - 1) + 1)
        parts.append(
            f'<rect class="buffer tone{number % 3}" x="{left:.2f}" y="{y(shape.end):.2f}" width="{right - left:.2f}" '
            f'height="{y(shape.offset) - y(shape.end):.2f}"><title>{html(_words(shape))}</title></rect>'
        )
    if is_limited and room is not None:
        parts.append(
            f'<line class="limit" x1="{LEFT}" y1="{y(room):.2f}" x2="{WIDTH - RIGHT}" y2="{y(room):.2f}">'
            f"<title>{html(f'the limit leaves the arena {plain(room)} bytes')}</title></line>"
        )
    parts += [*line.axis(base), *scale_labels(most, TOP, base)]
    whole = f"Bytes of the arena over time, {plain(chip.arena_bytes)} in all"
    caption = f"{whole}: a rectangle for each value while it is needed, dark where a result lies over its operand"
    if is_limited:
        caption += "; the dashed line is what the limit on RAM leaves for them"
    return drawing(caption, base + BOTTOM, parts)


def _words(shape: Shape) -> str:
    when = f"layer {shape.first}" if shape.first == shape.last else f"layers {shape.first} to {shape.last}"
    where = f"{plain(shape.end - shape.offset)} bytes at {plain(shape.offset)}, {when}"
    if len(shape.buffers) > 1:
        return f"{plain(len(shape.buffers))} values, such as {shape.buffers[0].name}: {where}"
    only = shape.buffers[0]
    return f"{only.name}: {where}" + (f" ({only.layer})" if only.layer else "")
