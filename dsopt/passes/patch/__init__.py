"""patch: run the first layers of an integer network patch by patch, so that no value of theirs is ever whole in memory.

After Lin et al. 2021, "MCUNetV2: Memory-efficient patch-based inference for tiny deep learning". Patches are exact here: each
computes the border that it shares with its neighbours again, so that results do not change by a bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx

from dsopt.errors import UsageError
from dsopt.ir import Program, Rewriter
from dsopt.passes.base import Pass, PassContext
from dsopt.passes.patch.rewrite import cut, insert, joined, stage_of
from dsopt.passes.patch.stage import Span, Stage, bands, extent, images_of, needed, spans

_Found = tuple[dict[fx.Node, Span], dict[fx.Node, Span]]


@dataclass(frozen=True)
class Patch(Pass):
    """patch{until=NODE,rows=R,columns=C}: R x C patches of the value of a node, with all that it is made of."""

    name: ClassVar[str] = "patch"

    until: str = ""
    rows: int = 2
    columns: int = 2

    def run(self, program: Program, rewriter: Rewriter, context: PassContext) -> None:
        """Rewrite the stage that ends with `until`. Raises UsageError if no stage does."""
        stage = stage_of(program, self.until, self.name)
        height, width = (extent(program, stage.end, dim) for dim in (0, 1))
        if not (1 <= self.rows <= height and 1 <= self.columns <= width):
            raise UsageError(
                "DS0309", f"patch cannot share {height} x {width} pixels between {self.rows} x {self.columns} patches",
                fix="ask for at least one, and at most as many as there are pixels",
            )  # fmt: skip
        across = [spans(program, stage, 0, span) for span in bands(height, self.rows)]
        along = [spans(program, stage, 1, span) for span in bands(width, self.columns)]
        rows_of_patches = []
        for rows in across:
            patches = [_patch(program, rewriter, stage, (rows, columns)) for columns in along]
            rows_of_patches.append(joined(rewriter, patches, 3, stage.end))
        end = stage.end
        rewriter.replace(end, joined(rewriter, rows_of_patches, 2, end))
        rewriter.erase_dead()


def _patch(program: Program, rewriter: Rewriter, stage: Stage, found: _Found) -> fx.Node:
    """Insert the nodes of one patch before the end of the stage. Returns the patch of its value."""
    values: dict[fx.Node, fx.Node] = {}
    held: dict[fx.Node, tuple[Span, Span]] = {}
    for source in stage.sources:
        values[source] = source
        held[source] = (0, extent(program, source, 0)), (0, extent(program, source, 1))
    for node in stage.nodes:
        images: dict[int, fx.Node] = {}
        for place in images_of(node):
            image: Any = node.args[place]
            images[place] = values[image]
            for dim in (0, 1):
                wanted = needed(program, node, place, dim, found[dim][node])
                images[place] = cut(rewriter, images[place], dim, held[image][dim], wanted, stage.end, node)
        held[node] = (found[0][node], found[1][node])
        values[node] = insert(program, rewriter, node, images, held[node], stage.end)
    return values[stage.end]
