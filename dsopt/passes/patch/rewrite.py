"""What patches and strips are made of: parts of values, and nodes that compute a part of what a node computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from dsopt.errors import UsageError
from dsopt.ir import Program, Rewriter
from dsopt.passes.patch.stage import CONVOLUTIONS, PADDING, Span, Stage, needed, stages, window


def stage_of(program: Program, until: str, pass_name: str) -> Stage:
    """Return the stage that ends with a node. Raises UsageError if none does."""
    known = {stage.end.name: stage for stage in stages(program)}
    if until not in known:
        raise UsageError(
            "DS0309", f"{pass_name} has no stage that ends with {until!r}",
            why="a stage has two or more convolutions, and nothing else reads what is between them",
            fix="name one of: " + (", ".join(known) or "none: this network has no such stage"),
        )  # fmt: skip
    return known[until]


def joined(rewriter: Rewriter, parts: Sequence[fx.Node], dim: int, like: fx.Node) -> fx.Node:
    """Insert what puts parts one behind the other; one part is itself."""
    return parts[0] if len(parts) == 1 else rewriter.call(torch.ops.aten.cat.default, list(parts), dim, like=like)


def cut(
    rewriter: Rewriter, value: fx.Node, dim: int, have: Span, want: Span, like: fx.Node, node: fx.Node
) -> fx.Node:  # fmt: skip
    """Insert what takes a span of a dim of an image of which a value holds another; nothing if that is all of it.

    node: the one of the user's network that it is for.
    """
    if have == want:
        return value
    low, high = want[0] - have[0], want[1] - have[0]
    return named(rewriter.call(torch.ops.aten.slice.Tensor, value, 2 + dim, low, high, like=like), node)


def named(made: fx.Node, node: fx.Node) -> fx.Node:
    """Return an inserted node, which belongs to the same layer and line as another."""
    for key in ("layer", "source"):
        made.meta[key] = node.meta.get(key, "")
    return made


def insert(
    program: Program, rewriter: Rewriter, node: fx.Node, images: Mapping[int, fx.Node], spans: tuple[Span, Span], like: fx.Node
) -> fx.Node:  # fmt: skip
    """Insert what computes a part of a node.

    images: what holds the parts that it needs, by their places among its arguments.  spans: rows and columns of its result.
    """
    arguments: list[Any] = [images.get(place, value) for place, value in enumerate(node.args)]
    if node.target in CONVOLUTIONS:
        arguments[PADDING] = _padding(program, node, spans)
    return named(rewriter.call(node.target, *arguments, like=like), node)  # type: ignore[arg-type]


def _padding(program: Program, node: fx.Node, spans: tuple[Span, Span]) -> list[int]:
    """Return what of the windows of a part lies outside of the image: before each dim, and after each if that differs."""
    before, after = [], []
    for dim in (0, 1):
        low, high = window(node, dim, spans[dim])
        start, stop = needed(program, node, 0, dim, spans[dim])
        before.append(start - low)
        after.append(high - stop)
    return before if before == after else before + after
