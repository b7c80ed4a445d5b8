"""cascade: run the first layers of an integer network strip by strip, each row once: a few rows of every value are in memory at a time.

After Alwani et al. 2016, "Fused-layer CNN accelerators", as a rewrite of the graph: a depthwise convolution runs as soon as the 1x1 before
it has given three rows, and the 1x1 behind it on the row that comes out. Rows that the next strip needs again are kept, where `patch`
computes them again. Where whole rows are too much, the image is cut into columns of strips, one after the other, whose borders are
computed twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from dsopt.errors import UsageError
from dsopt.ir import Program, Rewriter
from dsopt.passes.base import Pass, PassContext
from dsopt.passes.patch.rewrite import cut, insert, joined, named, stage_of
from dsopt.passes.patch.stage import Span, Stage, bands, extent, images_of, needed, spans
from dsopt.passes.patch.strips import Strip, strips


@dataclass(frozen=True)
class Cascade(Pass):
    """cascade{until=NODE,rows=R,columns=C}: the value of a node, with all that it is made of, by R rows of the image that it begins with.

    columns: how many parts there are next to each other, each with all of its strips before the next.
    """

    name: ClassVar[str] = "cascade"

    until: str = ""
    rows: int = 4
    columns: int = 1

    def run(self, program: Program, rewriter: Rewriter, context: PassContext) -> None:
        """Rewrite the stage that ends with `until`. Raises UsageError if no stage does, or for rows that there are not."""
        stage = stage_of(program, self.until, self.name)
        highest, width = max(extent(program, source, 0) for source in stage.sources), extent(program, stage.end, 1)
        if not (1 <= self.rows <= highest and 1 <= self.columns <= width):
            raise UsageError(
                "DS0309", f"cascade cannot take {self.rows} of {highest} rows at a time in {self.columns} of {width} columns",
                fix="ask for at least one, and at most as many as there are",
            )  # fmt: skip
        cut_rows = strips(program, stage, self.rows)
        along = []
        for band in bands(width, self.columns):
            lines = _Lines(program, rewriter, stage, spans(program, stage, 1, band))
            parts = [lines.computed(strip) for strip in cut_rows]
            along.append(joined(rewriter, [part for part in parts if part is not None], 2, stage.end))
        rewriter.replace(stage.end, joined(rewriter, along, 3, stage.end))
        rewriter.erase_dead()


class _Lines:
    """What is held of each value of a stage."""

    def __init__(self, program: Program, rewriter: Rewriter, stage: Stage, columns: dict[fx.Node, Span]) -> None:
        """columns: of each node that are computed."""
        self._program, self._rewriter, self._stage, self._columns = program, rewriter, stage, columns
        self._held = {source: source for source in stage.sources}
        self._rows: dict[Any, Span] = {source: (0, extent(program, source, 0)) for source in stage.sources}

    def computed(self, strip: Strip) -> fx.Node | None:
        """Insert the nodes of a strip before the end of the stage. Returns its rows of the end, None for none."""
        end = None
        for node in self._stage.nodes:
            if strip.new[node][0] == strip.new[node][1]:
                continue
            made = self._new_rows(node, strip)
            if node is self._stage.end:
                end = made
            else:
                self._hold(node, made, strip)
        return end

    def _new_rows(self, node: fx.Node, strip: Strip) -> fx.Node:
        images: dict[int, fx.Node] = {}
        for place in images_of(node):
            image: Any = node.args[place]
            rows = needed(self._program, node, place, 0, strip.new[node])
            columns = needed(self._program, node, place, 1, self._columns[node])
            part = cut(self._rewriter, self._held[image], 0, self._rows[image], rows, self._stage.end, node)
            images[place] = cut(self._rewriter, part, 1, self._columns_of(image), columns, self._stage.end, node)
        part_of_node = (strip.new[node], self._columns[node])
        return insert(self._program, self._rewriter, node, images, part_of_node, self._stage.end)

    def _columns_of(self, image: fx.Node) -> Span:
        """Return the columns of an image that are in memory."""
        return (0, extent(self._program, image, 1)) if image in self._stage.sources else self._columns[image]

    def _hold(self, node: fx.Node, made: fx.Node, strip: Strip) -> None:
        """Put the new rows of a value behind those that are still needed."""
        (low, high), first = strip.held(node), strip.new[node][0]
        if low < first:
            old = cut(self._rewriter, self._held[node], 0, self._rows[node], (low, first), self._stage.end, node)
            made = named(self._rewriter.call(torch.ops.aten.cat.default, [old, made], 2, like=self._stage.end), node)
        self._held[node], self._rows[node] = made, (low, high)
