"""Which stage to run in which patches or strips so that values fit into a memory, at the price of the fewest products computed twice."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from dsopt.ir import Program
from dsopt.passes.patch import Patch
from dsopt.passes.patch.cascade import Cascade
from dsopt.passes.patch.stage import (
    CONVOLUTIONS,
    GROUPS,
    WEIGHT_SHAPE,
    Span,
    Stage,
    bands,
    extent,
    images_of,
    needed,
    products_of,
    spans,
    stages,
)
from dsopt.passes.patch.strips import Strip, strips

_MOST_BANDS = 16
"""Rows and columns of patches that are considered."""
_STRIP_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_MOST_COLUMNS = 4
_MOST_NODES = 1200
"""Of a stage in strips, all together: each is a call, and a value to place."""


@dataclass(frozen=True)
class Choice:
    """A way to run a program in patches, or in strips. Both figures are estimates: bytes without scratch memory, products of one run.

    rows, columns: how many patches, or strips, there are.
    """

    patch: Patch | Cascade
    ram_bytes: int
    products: int
    rows: int
    columns: int = 1

    @property
    def is_cascade(self) -> bool:
        """Return whether it is in strips."""
        return isinstance(self.patch, Cascade)


@dataclass(frozen=True)
class _Bands:
    """A dim cut into bands: what a band needs of each value, at most and in all; `parts`: what of an image a node reads at most, and
    whether that is less than what there is of it.
    """

    count: int
    most: Mapping[fx.Node, int]
    total: Mapping[fx.Node, int]
    parts: Mapping[tuple[fx.Node, int], tuple[int, bool]]


def choices(program: Program, ram_bytes: int) -> list[Choice]:
    """Return the ways whose values are estimated to fit, the ones with the fewest products first, then those with the fewest parts."""
    found: list[Choice] = []
    for stage in stages(program):
        rest = _rest(program, stage)
        around = _bytes(program, stage.end) + sum(_bytes(program, source) for source in stage.sources)
        if rest > ram_bytes:
            continue
        across, along = (_cut(program, stage, dim, extent(program, stage.end, dim)) for dim in (0, 1))
        found += [
            each for each in _cascades(program, stage, along, max(around, rest), rest) if each.ram_bytes <= ram_bytes
        ]
        for rows in across:
            for columns in along:
                peak = max(rest, around + _inside(program, stage, rows, columns))
                if rows.count * columns.count > 1 and peak <= ram_bytes:
                    patch = Patch(stage.end.name, rows.count, columns.count)
                    products_of_all = _products(program, stage, rows, columns)
                    found.append(Choice(patch, peak, products_of_all, rows.count, columns.count))
    return sorted(found, key=lambda each: (each.products, each.rows * each.columns, each.ram_bytes, each.patch.until))


def _eaten(program: Program, stage: Stage, count: int) -> int:
    """Return about how many bytes of what the stage reads its end grows over: those of a plane that was read, but for two strips."""
    planes = (_bytes(program, source) // int(program.shape(source)[1]) for source in stage.sources)
    return min(_bytes(program, stage.end), max(planes)) * max(count - 2, 0) // count


def _cascades(program: Program, stage: Stage, along: Sequence[_Bands], around: int, rest: int) -> Iterator[Choice]:
    """Yield ways to cut a stage into strips. around: bytes of what it reads and makes.  rest: of values at the worst node behind it."""
    highest = max(extent(program, source, 0) for source in stage.sources)
    heights = replace(along[0], total={node: extent(program, node, 0) for node in (*stage.sources, *stage.nodes)})
    for rows in _STRIP_ROWS:
        count = -(-highest // rows)
        if count == 1 or count * len(stage.nodes) > _MOST_NODES:
            continue
        held = _Held.of(program, stage, strips(program, stage, rows))
        for columns in along[:_MOST_COLUMNS]:
            eaten = _eaten(program, stage, count) if columns.count == 1 else 0
            row_bytes = {node: _channel_bytes(program, node) * most for node, most in columns.most.items()}
            peak = max(rest, around + held.most_bytes(row_bytes) - eaten)
            if count * columns.count * len(stage.nodes) <= _MOST_NODES:
                way = Cascade(stage.end.name, rows, columns.count)
                yield Choice(way, peak, _products(program, stage, heights, columns), count, columns.count)


@dataclass(frozen=True)
class _Held:
    """What strips hold, in rows. lines: of values that are kept, always; steps: a node that is computed, the rows of it that are held
    until they are read, those that are cut out of images that the stage reads, and which of the held values end there.
    """

    lines: Mapping[fx.Node, int]
    steps: Sequence[tuple[fx.Node, int, Sequence[tuple[Any, int]], Sequence[Any]]]

    @staticmethod
    def of(program: Program, stage: Stage, cut: Sequence[Strip]) -> _Held:
        """Go through all strips."""
        kept = {node for node in stage.nodes[:-1] if any(strip.first[node] < strip.new[node][0] for strip in cut)}
        lines = {node: max(strip.held(node)[1] - strip.held(node)[0] for strip in cut) for node in kept}
        last = {node.args[place]: node for node in stage.nodes for place in images_of(node)}
        steps = []
        for strip in cut:
            for node in stage.nodes:
                start, end = strip.new[node]
                if start == end:
                    continue
                read = [(node.args[each], needed(program, node, each, 0, strip.new[node])) for each in images_of(node)]
                copies = [(image, high - low) for image, (low, high) in read if image in stage.sources]
                passing = 0 if node in kept or node is stage.end else end - start
                steps.append((node, passing, copies, [image for image, _ in read if last[image] is node]))
        return _Held(lines, steps)

    def most_bytes(self, row_bytes: Mapping[Any, int]) -> int:
        """Return the bytes at the worst step."""
        always = sum(rows * row_bytes[node] for node, rows in self.lines.items())
        passing: dict[Any, int] = {}
        peak = 0
        for node, rows, copies, ending in self.steps:
            passing[node] = rows * row_bytes[node]
            copied = sum(each * row_bytes[image] for image, each in copies)
            peak = max(peak, always + sum(passing.values()) + copied)
            for image in ending:
                passing.pop(image, None)
        return peak


def products(program: Program) -> int:
    """Return the multiply-adds of the convolutions of a run that is not in patches."""
    return sum(
        products_of(program, node) * _pixels(program, node)
        for node in program.graph.nodes
        if node.target in CONVOLUTIONS
    )


def _pixels(program: Program, node: fx.Node) -> int:
    return math.prod(extent(program, node, dim) for dim in range(len(program.shape(node)) - 2))


def _cut(program: Program, stage: Stage, dim: int, size: int) -> list[_Bands]:
    return [_bands(program, stage, dim, bands(size, count)) for count in range(1, min(size, _MOST_BANDS) + 1)]


def _bands(program: Program, stage: Stage, dim: int, cut: Sequence[Span]) -> _Bands:
    found = [spans(program, stage, dim, span) for span in cut]
    values = (*stage.sources, *stage.nodes)
    lengths = {node: [each[node][1] - each[node][0] for each in found] for node in values}
    parts = {}
    for node in stage.nodes:
        for place in images_of(node):
            image: Any = node.args[place]
            wanted = [needed(program, node, place, dim, each[node]) for each in found]
            whole = (0, extent(program, image, dim))
            held = [whole if image in stage.sources else each[image] for each in found]
            parts[node, place] = max(high - low for low, high in wanted), wanted != held
    most = {node: max(each) for node, each in lengths.items()}
    return _Bands(len(cut), most, {node: sum(each) for node, each in lengths.items()}, parts)


def _products(program: Program, stage: Stage, rows: _Bands, columns: _Bands) -> int:
    inside = set(stage.nodes)
    patched = sum(products_of(program, node) * rows.total[node] * columns.total[node] for node in stage.nodes)
    others = (node for node in program.graph.nodes if node not in inside and node.target in CONVOLUTIONS)
    return patched + sum(products_of(program, node) * _pixels(program, node) for node in others)


def _inside(program: Program, stage: Stage, rows: _Bands, columns: _Bands) -> int:
    """Return the bytes of the values of the largest patch at the worst node."""
    last: dict[Any, fx.Node] = {node.args[place]: node for node in stage.nodes for place in images_of(node)}
    channel_bytes: dict[Any, int] = {node: _channel_bytes(program, node) for node in (*stage.sources, *stage.nodes)}
    sizes = {node: size * rows.most[node] * columns.most[node] for node, size in channel_bytes.items()}
    alive = peak = 0
    for node in stage.nodes:
        copies = 0
        for place in images_of(node):
            (height, is_part), (width, is_narrow) = rows.parts[node, place], columns.parts[node, place]
            copies += height * width * channel_bytes[node.args[place]] if is_part or is_narrow else 0
        ending = sum(sizes[each] for each, by in last.items() if by is node and each not in stage.sources)
        shared = min(ending, sizes[node]) if _may_share(node) else 0
        peak = max(peak, alive + copies + sizes[node] - shared)
        alive += sizes[node] - ending
    return peak


def _rest(program: Program, stage: Stage) -> int:
    """Return the bytes of values at the worst node behind a stage."""
    inside = set(stage.nodes[:-1])
    nodes = [node for node in program.graph.nodes if node not in inside and node.op == "call_function"]
    order = {node: number for number, node in enumerate(nodes)}
    first = order[stage.end]
    last = {node: max((order[user] for user in node.users if user in order), default=len(nodes)) for node in nodes}
    peak = 0
    for node in nodes[first + 1 :]:
        alive = [each for each in nodes[first:] if order[each] <= order[node] <= last[each]]
        ends = [each for each in node.all_input_nodes if last.get(each) == order[node]]
        shared = min(_bytes(program, ends[0]), _bytes(program, node)) if ends and _may_share(node) else 0
        peak = max(peak, sum(_bytes(program, each) for each in alive) - shared)
    return peak


def _may_share(node: fx.Node) -> bool:
    """Return whether a node may write over what it reads: channel by channel, or pixel by pixel."""
    if node.target not in CONVOLUTIONS:
        return True
    shape: Any = node.args[WEIGHT_SHAPE]
    return int(node.args[GROUPS]) != 1 or math.prod(shape[2:]) == 1  # type: ignore[arg-type]


def _channel_bytes(program: Program, node: fx.Node) -> int:
    value = node.meta["val"]
    return int(value.shape[1]) * int(value.dtype.itemsize)


def _bytes(program: Program, node: fx.Node) -> int:
    value = node.meta.get("val")
    return value.numel() * value.dtype.itemsize if hasattr(value, "numel") else 0  # type: ignore[union-attr]
