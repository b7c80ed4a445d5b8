"""Which rows of each value of a stage a strip computes, and which are still needed then: no row is computed twice.

A strip takes some more rows of the images that a stage reads, and computes all rows that they allow. Each value is held from the first
row that a later one still needs to the last that there is: its line buffer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from dsopt.ir import Program
from dsopt.passes.patch.stage import Span, Stage, extent, images_of, needed


@dataclass(frozen=True)
class Strip:
    """new: the rows of each node that a strip computes, perhaps none.  first: the first row that it or a later one reads of each."""

    new: dict[fx.Node, Span]
    first: dict[fx.Node, int]

    def held(self, node: fx.Node) -> Span:
        """Return the rows of a node that are in memory once its new ones are."""
        start, end = self.new[node]
        return min(self.first[node], start), end


def strips(program: Program, stage: Stage, rows: int) -> list[Strip]:
    """Cut a stage. rows: of the highest image that it reads, for each strip."""
    heights: dict[fx.Node, int] = {node: extent(program, node, 0) for node in (*stage.sources, *stage.nodes)}
    readers = {node: _readers(stage, node) for node in stage.nodes}
    highest = max(heights[source] for source in stage.sources)
    before = dict.fromkeys(heights, 0)
    found: list[Strip] = []
    for top in [*range(rows, highest, rows), highest]:
        now = {source: -(-heights[source] * top // highest) for source in stage.sources}
        for node in stage.nodes:
            now[node] = _computable(program, node, now, before[node], heights[node])
        first = {
            node: min(
                (
                    needed(program, user, place, 0, (before[user], before[user] + 1))[0]
                    for user, place in readers[node]
                    if before[user] < heights[user]
                ),
                default=now[node],
            )
            for node in stage.nodes
        }
        found.append(Strip({node: (before[node], now[node]) for node in stage.nodes}, first))
        before = now
    return found


def _computable(program: Program, node: fx.Node, now: dict[fx.Node, int], start: int, height: int) -> int:
    """Return up to which row a node can be computed from what there is of its images."""
    row = start
    while row < height and all(
        needed(program, node, place, 0, (row, row + 1))[1] <= now[node.args[place]]  # type: ignore[index]
        for place in images_of(node)
    ):
        row += 1
    return row


def _readers(stage: Stage, node: fx.Node) -> list[tuple[fx.Node, int]]:
    """Return which nodes of the stage read a value, and at which place."""
    found: list[tuple[Any, int]] = [(user, place) for user in stage.nodes for place in images_of(user)]
    return [(user, place) for user, place in found if user.args[place] is node]
