"""patch: run the first layers of an integer network patch by patch, so that no value of theirs is ever whole in memory.

After Lin et al. 2021, "MCUNetV2: Memory-efficient patch-based inference for tiny deep learning". Patches are exact here: each
computes the border that it shares with its neighbours again, so that results do not change by a bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from dsopt.errors import UsageError
from dsopt.ir import Program, Rewriter
from dsopt.passes.base import Pass, PassContext
from dsopt.passes.patch.stage import (
    CONVOLUTIONS,
    PADDING,
    Span,
    Stage,
    bands,
    extent,
    images_of,
    needed,
    spans,
    stages,
    window,
)

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
        known = {stage.end.name: stage for stage in stages(program)}
        if self.until not in known:
            raise UsageError(
                "DS0309", f"patch has no stage that ends with {self.until!r}",
                why="a stage has two or more convolutions, and nothing else reads what is between them",
                fix="name one of: " + (", ".join(known) or "none: this network has no such stage"),
            )  # fmt: skip
        stage = known[self.until]
        height, width = (extent(program, stage.end, dim) for dim in (0, 1))
        if not (1 <= self.rows <= height and 1 <= self.columns <= width):
            raise UsageError(
                "DS0309", f"patch cannot share {height} x {width} pixels between {self.rows} x {self.columns} patches",
                fix="ask for at least one, and at most as many as there are pixels",
            )  # fmt: skip
        across = [spans(program, stage, 0, span) for span in bands(height, self.rows)]
        along = [spans(program, stage, 1, span) for span in bands(width, self.columns)]
        strips = []
        for rows in across:
            patches = [_patch(program, rewriter, stage, (rows, columns)) for columns in along]
            strips.append(_joined(rewriter, patches, 3, stage.end))
        end = stage.end
        rewriter.replace(end, _joined(rewriter, strips, 2, end))
        rewriter.erase_dead()


def _joined(rewriter: Rewriter, parts: list[fx.Node], dim: int, like: fx.Node) -> fx.Node:
    return parts[0] if len(parts) == 1 else rewriter.call(torch.ops.aten.cat.default, parts, dim, like=like)


def _patch(program: Program, rewriter: Rewriter, stage: Stage, found: _Found) -> fx.Node:
    """Insert the nodes of one patch before the end of the stage. Returns the patch of its value."""
    values: dict[fx.Node, fx.Node] = {}
    held: dict[fx.Node, tuple[Span, Span]] = {}
    for source in stage.sources:
        values[source] = source
        held[source] = (0, extent(program, source, 0)), (0, extent(program, source, 1))
    for node in stage.nodes:
        arguments: list[Any] = list(node.args)
        for place in images_of(node):
            image: Any = node.args[place]
            wanted = tuple(needed(program, node, place, dim, found[dim][node]) for dim in (0, 1))
            arguments[place] = _cut(rewriter, values[image], held[image], wanted, stage.end)
        if node.target in CONVOLUTIONS:
            arguments[PADDING] = _padding(program, node, found)
        made = rewriter.call(node.target, *arguments, like=stage.end)  # type: ignore[arg-type]
        for key in ("layer", "source"):
            made.meta[key] = node.meta.get(key, "")
        values[node], held[node] = made, (found[0][node], found[1][node])
    return values[stage.end]


def _cut(
    rewriter: Rewriter, value: fx.Node, held: tuple[Span, Span], wanted: tuple[Span, ...], like: fx.Node
) -> fx.Node:
    for dim, (have, want) in enumerate(zip(held, wanted, strict=True)):
        if have != want:
            low, high = want[0] - have[0], want[1] - have[0]
            value = rewriter.call(torch.ops.aten.slice.Tensor, value, 2 + dim, low, high, like=like)
    return value


def _padding(program: Program, node: fx.Node, found: _Found) -> list[int]:
    """Return what of the windows of a patch lies outside of the image: before each dim, and after each if that differs."""
    before, after = [], []
    for dim in (0, 1):
        low, high = window(node, dim, found[dim][node])
        start, stop = needed(program, node, 0, dim, found[dim][node])
        before.append(start - low)
        after.append(high - stop)
    return before if before == after else before + after
