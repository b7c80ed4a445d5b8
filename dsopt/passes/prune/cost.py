"""Parameters and multiply-adds of a program as a function of which channels are kept."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import fx

from dsopt.ir.multiply_adds import multiply_adds
from dsopt.ir.torch_private import hint_of, is_operator, named_arguments
from dsopt.passes.prune.axes import Expr, fixed
from dsopt.passes.prune.channels import Channels, Keep
from dsopt.passes.prune.inference import AxisInference
from dsopt.passes.prune.rules.base import packet_name, rank

Of = Literal["params", "macs"]


class Cost:
    """A sum of products of extents. Multiply-adds are those of the captured example."""

    refines: ClassVar[bool] = True

    def __init__(self, channels: Channels, of: Of) -> None:
        self.channels = channels
        products = parameter_products(channels) if of == "params" else multiply_add_products(channels)
        self.constant = 0
        terms: list[tuple[int, tuple[int, ...]]] = []
        for exprs in products:
            extents = [channels.extent(expr) for expr in exprs]
            rows = tuple(row for extent in extents for row in extent.rows)
            terms.append((prod(extent.fixed for extent in extents), rows))
        width = max((len(rows) for _, rows in terms), default=0)
        self._factors = np.array([factor for factor, _ in terms], np.float64)
        nothing = len(channels.rows)
        self._rows = np.array([[*rows, *[nothing] * (width - len(rows))] for _, rows in terms], np.int64)
        self._rows = self._rows.reshape(len(terms), width)
        if of == "macs":
            self.constant = _uncounted(channels, self)
        self.total = self.of_counts(channels.kept_counts(np.ones(channels.count, np.bool_)))

    def of_counts(self, counts: NDArray[np.int64]) -> int:
        """Return the cost where each row has so many indices left."""
        sizes = np.append(counts, 1).astype(np.float64)
        return round(float((self._factors * sizes[self._rows].prod(axis=1)).sum())) + self.constant

    def __call__(self, keep: Keep) -> int:
        """Return the cost where these channels are kept."""
        return self.of_counts(self.channels.kept_counts(keep))


def parameter_products(channels: Channels) -> Iterable[tuple[Expr, ...]]:
    """Return the dimensions of every parameter."""
    program = channels.inference.program
    pairs = zip(program.placeholders, program.signature.weights, strict=False)
    return [channels.inference.axes(node) for node, spec in pairs if spec.kind == "parameter"]


def multiply_add_products(channels: Channels) -> Iterable[tuple[Expr, ...]]:
    """Return the dimensions whose product is a node's multiply-adds, for each node and each of its products."""
    inference = channels.inference
    return [product for node in _counted(inference) for product in _products(inference, node)]


def _counted(inference: AxisInference) -> list[fx.Node]:
    return [node for node in inference.program.graph.nodes if is_operator(node.target) and multiply_adds(node)]


def _uncounted(channels: Channels, cost: Cost) -> int:
    """Return the multiply-adds that no product stands for: they count as they are, whatever is pruned."""
    everything = channels.kept_counts(np.ones(channels.count, np.bool_))
    return sum(multiply_adds(node) for node in _counted(channels.inference)) - cost.of_counts(everything)


def _products(inference: AxisInference, node: fx.Node) -> list[tuple[Expr, ...]]:
    """Return what `dsopt.ir.multiply_adds` multiplies, as dimensions; [] for an operator that it counts in another way."""
    name, named = packet_name(node).removeprefix("dsopt."), named_arguments(node)
    if "conv" in name:
        return _convolution(inference, node, named)
    if name in ("linear", "linear_act"):
        x: Any = named.get("input", named.get("x"))
        return [(*inference.axes(x)[:-1], *inference.axes(named["weight"]))]
    if name in ("matmul", "mm", "bmm", "mv", "dot", "addmm", "baddbmm", "addmv"):
        first = node.args[1] if "add" in name else node.args[0]
        return [(*inference.axes(node), inference.axes(first)[-1])]  # type: ignore[arg-type]
    if name == "scaled_dot_product_attention":
        keys = inference.axes(named["key"])[-2]
        return [(*inference.axes(named["query"]), keys), (*inference.axes(node), keys)]
    if name == "sparse_attention":
        return _sparse_attention(inference, node, named)
    if name in ("lstm", "gru", "rnn_tanh", "rnn_relu") and "params" in named:
        steps = inference.axes(named["input"])[:-1]
        return [(*steps, *inference.axes(each)) for each in named["params"] if rank(each) == 2]
    if name.endswith("_cell"):
        steps = inference.axes(named["input"])[:-1]
        return [(*steps, *inference.axes(named[weight])) for weight in ("w_ih", "w_hh")]
    if name == "einsum":
        return _einsum(inference, node, named)
    return []


def _sparse_attention(inference: AxisInference, node: fx.Node, named: dict[str, Any]) -> list[tuple[Expr, ...]]:
    """What it takes goes by heads and head sizes; how many keys each looks at is taken as it is."""
    batch, heads, _, head = inference.axes(named["query"])
    value_head = inference.axes(node)[3]
    each = [hint_of(size) for size in (*inference.shape(named["query"]), inference.shape(node)[3])]
    rows = multiply_adds(node) // max(1, each[0] * each[1] * (each[3] + each[4]))
    return [(batch, heads, fixed(rows), width) for width in (head, value_head)]


def _convolution(inference: AxisInference, node: fx.Node, named: dict[str, Any]) -> list[tuple[Expr, ...]]:
    x: Any = named.get("input", named.get("x"))
    weight = inference.axes(named["weight"])
    is_transposed = named["transposed"] if "transposed" in named else "transpose" in packet_name(node)
    image = inference.axes(x if is_transposed else node)
    spatial = len(weight) - 2
    return [(*image[: len(image) - spatial - 1], *image[len(image) - spatial :], *weight)]


def _einsum(inference: AxisInference, node: fx.Node, named: dict[str, Any]) -> list[tuple[Expr, ...]]:
    left = str(named["equation"]).replace(" ", "").partition("->")[0]
    if "." in left:
        return []
    letters: dict[str, Expr] = {}
    for labels, operand in zip(left.split(","), named["tensors"], strict=True):
        for letter, expr in zip(labels, inference.axes(operand), strict=True):
            letters[letter] = letters.get(letter) or expr
    return [tuple(letters.values())]
