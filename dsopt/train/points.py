"""Where a student is compared with its teacher: what layers give, and where their attention looks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from dsopt.errors import UsageError
from dsopt.ir import Program
from dsopt.ir.blocks import find_layers
from dsopt.ir.torch_private import is_operator, named_arguments

_ATEN = torch.ops.aten
_SPARSE = torch.ops.dsopt.sparse_attention.default
_FUSED = (_ATEN.scaled_dot_product_attention.default, _SPARSE)
_SOFTMAX = (_ATEN.softmax.int, _ATEN._softmax.default)
_PRODUCTS = (_ATEN.matmul.default, _ATEN.bmm.default)
_TRANSPARENT = (_ATEN.dropout.default, _ATEN.clone.default, _ATEN.contiguous.default, _ATEN.to.dtype)

Values = Mapping[str, Tensor]
"""Values of nodes in one call, by the name of the node."""


@dataclass(frozen=True)
class Point:
    """A place in a program. hidden: the node whose value counts.  attention: the nodes that attend on the way to it."""

    name: str
    hidden: fx.Node
    attention: tuple[fx.Node, ...]

    def watched(self, hidden: bool, attention: bool) -> set[str]:
        """Return the names of the nodes whose values are needed."""
        nodes = {self.hidden} if hidden else set()
        for node in self.attention if attention else ():
            nodes |= set(_operands(node)) if node.target in _FUSED else {node}
        return {node.name for node in nodes}


def match_layers(student: Program, teacher: Program) -> list[tuple[Point, Point]]:
    """Compare what the student's n-th layer of S gives with what the teacher's layer round(n T / S) of T gives, both counted from 1.

    So the teacher's layers are spread evenly (Jiao et al. 2020, "TinyBERT", section 3.2). Raises UsageError where one has no layers, or
    the student has more.
    """
    mine, theirs = (_layer_points(program) for program in (student, teacher))
    if not mine or not theirs or len(mine) > len(theirs):
        raise UsageError(
            "DS0377", f"the layers of student and teacher do not pair: they have {len(mine)} and {len(theirs)}",
            why="a layer is a sum x + f(x), whose f(x) is made of x and of parameters",
            fix="name modules, as pairs=[('student.module', 'teacher.module')], or leave hidden and attention at 0",
        )  # fmt: skip
    return [(point, theirs[round(number * len(theirs) / len(mine)) - 1]) for number, point in enumerate(mine, start=1)]


def match_modules(student: Program, teacher: Program, pairs: Iterable[tuple[str, str]]) -> list[tuple[Point, Point]]:
    """Compare what modules give that the user names, each pair as (of the student, of the teacher).

    Raises UsageError for a module that the program does not have, or that gives nothing to the rest of it.
    """
    return [(_module_point(student, "student", one), _module_point(teacher, "teacher", other)) for one, other in pairs]


def _layer_points(program: Program) -> list[Point]:
    return [
        Point(layer.name, layer.result, tuple(node for node in program.graph.nodes if node in layer.inside and _attends(node)))
        for layer in find_layers(program)
    ]  # fmt: skip


def _module_point(program: Program, whose: str, name: str) -> Point:
    inside = [
        node
        for node in program.graph.nodes
        if node.op == "call_function"
        and (program.layer(node) == name or program.layer(node).startswith(f"{name}.") or not name)
    ]
    members = set(inside)
    leaving = [node for node in inside if any(user not in members for user in node.users) and _is_float(node)]
    if not leaving:
        known = dict.fromkeys(program.layer(node) for node in program.graph.nodes if program.layer(node))
        raise UsageError(
            "DS0377", f"the {whose} has no module {name!r} whose result the rest of it reads",
            fix="name one of: " + ", ".join(known),
        )  # fmt: skip
    return Point(name, leaving[-1], tuple(node for node in inside if _attends(node)))


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


# ---- attention ----


def _attends(node: fx.Node) -> bool:
    """Tell whether a node is attention: the fused operator, or a softmax over the last axis that weights the rows of a product."""
    if node.target in _FUSED:
        return True
    if node.target not in _SOFTMAX or node.args[1] not in (-1, node.meta["val"].dim() - 1):
        return False
    reader = node
    while len(reader.users) == 1 and next(iter(reader.users)).target in _TRANSPARENT:
        reader = next(iter(reader.users))
    return any(_weights(user, reader) for user in reader.users)


def _weights(product: fx.Node, weights: fx.Node) -> bool:
    if product.target is _ATEN.einsum.default:
        operands: Any = product.args[1]
        return len(operands) == 2 and operands[0] is weights
    return product.target in _PRODUCTS and product.args[0] is weights


def _operands(node: fx.Node) -> list[fx.Node]:
    named = named_arguments(node)
    given = (named["query"], named["key"], named["bias" if node.target is _SPARSE else "attn_mask"])
    return [item for item in given if isinstance(item, fx.Node)]


def attention_map(node: fx.Node, values: Values) -> Tensor:
    """Return how much each query of an attention node looks at each key, (..., H, T, S), rows of sum 1, before any dropout.

    The fused operator does not give it: softmax(q k^T scale + mask) is computed anew from its operands (Vaswani et al. 2017, 3.2.1).
    A query that may see no key looks at all alike. Sparse attention has the map of the dense attention that it stands for.
    """
    if not is_operator(node.target) or node.target not in _FUSED:
        return values[node.name]
    named = named_arguments(node)
    query, key = values[named["query"].name], values[named["key"].name]
    if named.get("enable_gqa", True):
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    scale = named["scale"]
    scores = query @ key.transpose(-1, -2) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    least = torch.finfo(scores.dtype).min
    is_sparse = node.target is _SPARSE
    mask, causal = (
        (named["bias"], named["causal"]) if is_sparse else (named["attn_mask"], ("none", "start")[named["is_causal"]])
    )
    if causal != "none":
        behind = scores.shape[-1] - scores.shape[-2] if causal == "end" else 0
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril(behind)
        scores = scores.masked_fill(~seen, least)
    if mask is not None:
        given = values[mask.name]
        is_bool = given.dtype == torch.bool
        scores = scores.masked_fill(~given, least) if is_bool else (scores + given).clamp(min=least)
    return scores.softmax(-1)


def attention_maps(point: Point, values: Values) -> list[Tensor]:
    """Return the maps of all attention at a point."""
    return [attention_map(node, values) for node in point.attention]


def same_heads(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return two maps as they can be compared: where the numbers of heads differ, the mean over the heads of each.

    one, other: (B, H, T, S) float.  Returns the same, or (B, T, S).
    """
    if one.dim() == other.dim() > 3 and one.shape[-3] != other.shape[-3]:
        return one.mean(-3), other.mean(-3)
    return one, other


def check_attention(pairs: Sequence[tuple[Point, Point]]) -> None:
    """Raise UsageError where no pair attends, or a pair does not attend equally often."""
    uneven = [(one, other) for one, other in pairs if len(one.attention) != len(other.attention)]
    if not uneven and any(one.attention for one, _ in pairs):
        return
    what = "no pair of points has attention to compare"
    if uneven:
        one, other = uneven[0]
        what = (
            f"{one.name!r} attends {len(one.attention)} times, and {other.name!r} of the teacher {len(other.attention)}"
        )
    raise UsageError(
        "DS0377", what, why="attention is scaled_dot_product_attention, or a softmax whose result weights a product",
        fix="name other modules in pairs, or leave attention at 0",
    )  # fmt: skip


def channel_axis(student: Program, teacher: Program, one: Point, other: Point) -> int | None:
    """Return the axis along which two hidden values have different widths; None if they are alike.

    Raises UsageError if more than one axis differs.
    """
    mine, theirs = student.shape(one.hidden), teacher.shape(other.hidden)
    differing = [
        axis for axis, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b and isinstance(a, int) and isinstance(b, int)
    ]  # fmt: skip
    if len(mine) != len(theirs) or len(differing) > 1 or 0 in differing:
        raise UsageError(
            "DS0377", f"{one.name!r} gives {list(mine)} and {other.name!r} of the teacher {list(theirs)}",
            why="a projection can change one width, and not the batch",
            fix="name other modules in pairs",
        )  # fmt: skip
    return differing[0] if differing else None
