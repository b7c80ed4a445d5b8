"""What a rule is: a function from an operator and its arguments to the dimensions of its result."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx

from dsopt.passes.prune.axes import Axes, Expr, Length, fixed

if TYPE_CHECKING:
    from dsopt.passes.prune.inference import AxisInference

Named = dict[str, Any]
"""Arguments by the names in the operator's schema."""

Result = Axes | list[Axes] | None
"""The dimensions of the result; a list where an operator gives several tensors; None where it gives none."""

Rule = Callable[["AxisInference", fx.Node, Named], Result]

Call = tuple[Any, Named]
"""An operator and its arguments."""


class Unknown(Exception):  # noqa: N818  it is no error: what it touches is pinned
    """A form of an operator that its rule does not know."""


class Widths(Protocol):
    """What is left of dimensions."""

    @property
    def inference(self) -> AxisInference:
        """Return the axis expressions of the program."""

    def kept(self, expr: Expr) -> Length:
        """Return how many indices of a dimension are left."""

    def is_cut(self, expr: Expr) -> bool:
        """Tell whether a dimension has lost an index."""

    def mask(self, expr: Expr) -> NDArray[np.bool_]:
        """Tell of each index of a dimension whether it is left."""


Resize = Callable[[Widths, fx.Node, Named], Call | None]
"""Writes the arguments of an operator anew; None where they stay."""


def packet_name(node: fx.Node) -> str:
    """Return "conv2d" of aten.conv2d.default, "dsopt.conv_act" of operators of another namespace."""
    namespace, _, rest = str(node.target).partition(".")
    packet = rest.partition(".")[0]
    return packet if namespace == "aten" else f"{namespace}.{packet}"


T = TypeVar("T")


def each(names: str, rule: T) -> dict[str, T]:
    """Give several operators one rule."""
    return dict.fromkeys(names.split(), rule)


def tensor(value: Any) -> fx.Node:
    """Return an argument that is a tensor. Raises Unknown."""
    if isinstance(value, fx.Node) and isinstance(value.meta.get("val"), Tensor):
        return value
    raise Unknown("an operand is no tensor of the program")


def rank(node: fx.Node) -> int:
    """Return the number of dimensions of a tensor."""
    return int(node.meta["val"].dim())


def axis(index: int, dims: int) -> int:
    """Return a dimension counted from the front."""
    return index + dims if index < 0 else index


def axis_list(dims: Any, count: int) -> tuple[int, ...]:
    """Return the dimensions that a `dim` argument names: one, several, or all where it is None or empty."""
    if dims is None or (isinstance(dims, (list, tuple)) and not dims):
        return tuple(range(count))
    return tuple(axis(int(dim), count) for dim in ([dims] if isinstance(dims, int) else dims))


def fixed_axes(sizes: Iterable[Length]) -> Axes:
    """Return dimensions without channels."""
    return tuple(fixed(size) for size in sizes)


def result_sizes(node: fx.Node) -> tuple[Length, ...]:
    """Return the shape of a node's result, of the first one if there are several."""
    value = node.meta["val"]
    return tuple((value[0] if isinstance(value, (tuple, list)) else value).shape)
