"""cascade: run the first layers of an integer network strip by strip, each row once: a few rows of every value are in memory at a time.

After Alwani et al. 2016, "Fused-layer CNN accelerators", as a rewrite of the graph: a depthwise convolution runs as soon as the 1x1 before
it has given three rows, and the 1x1 behind it on the row that comes out. Rows that the next strip needs again are kept, where `patch`
computes them again; in turn, strips are as wide as the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from dsopt.errors import UsageError
from dsopt.ir import Program, Rewriter
from dsopt.passes.base import Pass, PassContext
from dsopt.passes.patch.rewrite import cut, insert, joined, stage_of
from dsopt.passes.patch.stage import Span, Stage, extent, images_of, needed
from dsopt.passes.patch.strips import Strip, strips


@dataclass(frozen=True)
class Cascade(Pass):
    """cascade{until=NODE,rows=R}: the value of a node, with all that it is made of, by R rows of the image that it begins with."""

    name: ClassVar[str] = "cascade"

    until: str = ""
    rows: int = 4

    def run(self, program: Program, rewriter: Rewriter, context: PassContext) -> None:
        """Rewrite the stage that ends with `until`. Raises UsageError if no stage does, or for rows that there are not."""
        stage = stage_of(program, self.until, self.name)
        highest = max(extent(program, source, 0) for source in stage.sources)
        if not 1 <= self.rows <= highest:
            raise UsageError(
                "DS0309", f"cascade cannot take {self.rows} of {highest} rows at a time",
                fix="ask for at least one, and at most as many as there are",
            )  # fmt: skip
        lines = _Lines(program, rewriter, stage)
        parts = [lines.computed(strip) for strip in strips(program, stage, self.rows)]
        ends = [part for part in parts if part is not None]
        rewriter.replace(stage.end, joined(rewriter, ends, 2, stage.end))
        rewriter.erase_dead()


class _Lines:
    """What is held of each value of a stage."""

    def __init__(self, program: Program, rewriter: Rewriter, stage: Stage) -> None:
        self._program, self._rewriter, self._stage = program, rewriter, stage
        self._held = {source: source for source in stage.sources}
        self._spans: dict[Any, Span] = {source: (0, extent(program, source, 0)) for source in stage.sources}

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
            images[place] = cut(self._rewriter, self._held[image], 0, self._spans[image], rows, self._stage.end)
        spans = (strip.new[node], (0, extent(self._program, node, 1)))
        return insert(self._program, self._rewriter, node, images, spans, self._stage.end)

    def _hold(self, node: fx.Node, made: fx.Node, strip: Strip) -> None:
        """Put the new rows of a value behind those that are still needed."""
        (low, high), first = strip.held(node), strip.new[node][0]
        if low < first:
            old = cut(self._rewriter, self._held[node], 0, self._spans[node], (low, first), self._stage.end)
            made = self._rewriter.call(torch.ops.aten.cat.default, [old, made], 2, like=self._stage.end)
        self._held[node], self._spans[node] = made, (low, high)
