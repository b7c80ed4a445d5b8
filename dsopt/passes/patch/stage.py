"""Stages of a program that can run patch by patch: what may belong to one, and which part of each value a patch needs.

Rows and columns of an image are independent of each other, so everything here is about one dim at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import fx

from dsopt.ir import Program

Span = tuple[int, int]
"""Places from the first up to, but without, the second."""

ops = torch.ops.dsopt
CONVOLUTIONS = (ops.q_conv.default, ops.q_conv_add.default)
STRIDE, PADDING, DILATION, TRANSPOSED, GROUPS, RESIDUAL = 9, 10, 11, 12, 14, 21
"""Places of arguments of q_conv and q_conv_add."""
WEIGHT_SHAPE = 7
_ELEMENTWISE = {
    ops.q_add.default: 2,
    ops.q_mul.default: 2,
    ops.q_rescale.default: 1,
    ops.q_lookup.default: 1,
}
"""Operators over each element, and how many images they take."""


@dataclass(frozen=True)
class Stage:
    """Nodes in order, the last of which is the only one that is read by others; `sources` are the images that it reads."""

    nodes: tuple[fx.Node, ...]
    sources: tuple[fx.Node, ...]

    @property
    def end(self) -> fx.Node:
        """Return the node whose value the stage is for."""
        return self.nodes[-1]


def extent(program: Program, node: Any, dim: int) -> int:
    """Return the size of an image in a spatial dim."""
    value = node.meta.get("val")  # asked for a million times, so without the names of dims that Program.shape has
    return int(value.shape[2 + dim])


def images_of(node: fx.Node) -> list[int]:
    """Return the places among a node's arguments that are images of its size, or that it convolves."""
    if node.target is ops.q_conv_add.default:
        return [0, RESIDUAL]
    if node.target is ops.q_conv.default:
        return [0]
    return list(range(_ELEMENTWISE[node.target]))  # type: ignore[index]


def may_be_patched(program: Program, node: fx.Node) -> bool:
    """Return whether a node makes each pixel of pixels around it, from images of one batch."""
    if node.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor) or node.meta["val"].dim() != 4:
        return False
    if node.target in CONVOLUTIONS:
        reach = _reach(node)
        sides: Any = node.args[PADDING]
        overlaps = all(each < reach[number % 2] for number, each in enumerate(sides))  # no window is all border
        return not node.args[TRANSPOSED] and program.shape(node)[0] == 1 and overlaps
    if node.target not in _ELEMENTWISE:
        return False
    shapes = {program.shape(node.args[place]) for place in images_of(node)}  # type: ignore[arg-type]
    return shapes == {program.shape(node)}


def stages(program: Program) -> Iterator[Stage]:
    """Yield, for each node that may end one, the largest stage with all that it is made of; at least two convolutions."""
    allowed = [node for node in program.graph.nodes if may_be_patched(program, node)]
    members: dict[fx.Node, frozenset[fx.Node]] = {}
    order = {node: number for number, node in enumerate(program.graph.nodes)}
    for node in allowed:
        found: set[fx.Node] = {node}
        for place in images_of(node):
            found |= members.get(node.args[place], frozenset())
        members[node] = frozenset(found)
        is_closed = all(user in found for each in found - {node} for user in each.users)
        convolutions = [each for each in found if each.target in CONVOLUTIONS]
        if is_closed and len(convolutions) > 1:
            nodes = tuple(sorted(found, key=order.__getitem__))
            read = {each.args[place] for each in nodes for place in images_of(each)} - found
            yield Stage(nodes, tuple(sorted(read, key=order.__getitem__)))  # type: ignore[arg-type]


def why_none(program: Program) -> str:
    """Return what keeps first layers from running patch by patch; "" for a program without convolutions."""
    if next(stages(program), None) is not None:
        return "what is around them takes as much"
    if any(node.target in CONVOLUTIONS for node in program.graph.nodes):
        return "no two convolutions stand one behind the other, of one image at a time, with values that nothing else reads"
    if any("conv" in str(node.target) for node in program.graph.nodes):
        return "only layers in 8-bit integers run patch by patch"
    return ""


def _reach(node: fx.Node) -> list[int]:
    """Return how many places the window of a convolution spans in each dim."""
    dilation: Any = node.args[DILATION]
    kernel: Any = node.args[WEIGHT_SHAPE]
    return [(size - 1) * by + 1 for size, by in zip(kernel[2:], dilation, strict=True)]


def window(node: fx.Node, dim: int, span: Span) -> Span:
    """Return the places of its image, some perhaps outside of it, that a convolution needs for a span of its result."""
    stride: Any = node.args[STRIDE]
    padding: Any = node.args[PADDING]
    return span[0] * stride[dim] - padding[dim], (span[1] - 1) * stride[dim] - padding[dim] + _reach(node)[dim]


def needed(program: Program, node: fx.Node, place: int, dim: int, span: Span) -> Span:
    """Return the span of the image at a place of a node's arguments that a span of its result is made of."""
    if place or node.target not in CONVOLUTIONS:
        return span
    low, high = window(node, dim, span)
    size = extent(program, node.args[0], dim)
    low = min(max(low, 0), size - 1)
    return low, max(min(high, size), low + 1)


def spans(program: Program, stage: Stage, dim: int, span: Span) -> dict[fx.Node, Span]:
    """Return the span of each value, those of the sources too, that a span of the end is made of."""
    wanted: dict[fx.Node, Span] = {stage.end: span}
    for node in reversed(stage.nodes):
        for place in images_of(node):
            source: Any = node.args[place]
            span = needed(program, node, place, dim, wanted[node])
            before = wanted.get(source, span)
            wanted[source] = min(before[0], span[0]), max(before[1], span[1])
    return wanted


def bands(size: int, count: int) -> list[Span]:
    """Share `size` places between `count` bands that differ by one at most, the larger first."""
    less, more = divmod(size, count)
    starts = [number * less + min(number, more) for number in range(count + 1)]
    return list(pairwise(starts))


def products_of(program: Program, node: fx.Node) -> int:
    """Return the multiply-adds for one pixel of a node."""
    if node.target not in CONVOLUTIONS:
        return 0
    shape: Any = node.args[WEIGHT_SHAPE]
    return math.prod(shape)
