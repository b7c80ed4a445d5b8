"""How many multiply-adds a node takes: what `dsopt inspect` shows, at the sizes of the example that the program was captured with."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from torch import Tensor, fx

from dsopt.ir.torch_private import hint_of, named_arguments
from dsopt.ops import sparse_attention


def multiply_adds(node: fx.Node) -> int:
    """Return the multiply-adds of a convolution, matrix product, attention or recurrent layer; 0 for all else.

    A size that varies counts as in the captured example. Bias additions and activations are not counted.
    """
    if node.op != "call_function":
        return 0
    base = str(node.target).split(".")[1] if "." in str(node.target) else ""
    count = _COUNTS.get(base)
    return 0 if count is None else count(node)


def _sizes(arg: Any) -> list[int]:
    value = arg.meta["val"]
    value = value[0] if isinstance(value, (tuple, list)) else value
    assert isinstance(value, Tensor)
    return [hint_of(size) for size in value.shape]


def _convolution(node: fx.Node) -> int:
    """Every position of the output (of the input, if transposed) meets every weight once for each sample."""
    name = str(node.target)
    # aten.convolution and dsopt.conv_act say in their arguments whether they are transposed: the seventh of both.
    is_general = "convolution." in name or "conv_act." in name
    is_transposed = bool(node.args[6]) if is_general else "transpose" in name
    weight, image = _sizes(node.args[1]), _sizes(node.args[0] if is_transposed else node)
    spatial = len(weight) - 2
    return prod(image[: len(image) - spatial - 1]) * prod(image[len(image) - spatial :]) * prod(weight)


def _linear(node: fx.Node) -> int:
    return prod(_sizes(node.args[0])) * prod(_sizes(node.args[1])[:-1])


def _matrix_product(first: int) -> Callable[[fx.Node], int]:
    def count(node: fx.Node) -> int:
        return prod(_sizes(node)) * _sizes(node.args[first])[-1]

    return count


def _attention(node: fx.Node) -> int:
    query, keys = _sizes(node.args[0]), _sizes(node.args[1])
    return prod(query) * keys[-2] + prod(_sizes(node)) * keys[-2]


def _sparse_attention(node: fx.Node) -> int:
    """Selection included; a causal mask saves next to nothing, since every tile has its picks."""
    named = named_arguments(node)
    query, key, value = (_sizes(named[name]) for name in ("query", "key", "value"))
    return sparse_attention.multiply_adds(query, key, value, named["budget"], named["unit"], named["tile"])


def _recurrent(node: fx.Node) -> int:
    """Every step of every sample meets every weight matrix of every layer and direction once."""
    parameters: Any = node.args[2]
    matrices = [shape for shape in map(_sizes, parameters) if len(shape) == 2]
    return prod(_sizes(node.args[0])[:-1]) * sum(prod(shape) for shape in matrices)


def _cell(node: fx.Node) -> int:
    samples = prod(_sizes(node.args[0])[:-1])
    return samples * (prod(_sizes(node.args[2])) + prod(_sizes(node.args[3])))


def _einsum(node: fx.Node) -> int:
    """Every element of the output sums over the letters that it does not have."""
    equation, operands = str(node.args[0]).replace(" ", ""), node.args[1]
    left, arrow, right = equation.partition("->")
    size_of: dict[str, int] = {}
    for labels, operand in zip(left.split(","), operands, strict=False):  # type: ignore[arg-type]
        before, _, after = labels.partition("...")
        sizes = _sizes(operand)
        size_of |= dict(zip(before, sizes, strict=False))
        if after:
            size_of |= dict(zip(after, sizes[-len(after) :], strict=True))
    if not arrow:
        right = "".join(letter for letter in size_of if left.count(letter) == 1)
    return prod(_sizes(node)) * prod(size for letter, size in size_of.items() if letter not in right)


_COUNTS: dict[str, Callable[[fx.Node], int]] = {
    **dict.fromkeys(["conv1d", "conv2d", "conv3d", "convolution", "conv_act"], _convolution),
    **dict.fromkeys(["conv_transpose1d", "conv_transpose2d", "conv_transpose3d"], _convolution),
    **dict.fromkeys(["linear", "linear_act", "dynamic_linear"], _linear),
    **dict.fromkeys(["matmul", "mm", "bmm", "mv", "dot"], _matrix_product(0)),
    **dict.fromkeys(["addmm", "baddbmm", "addmv"], _matrix_product(1)),
    "scaled_dot_product_attention": _attention,
    "sparse_attention": _sparse_attention,
    **dict.fromkeys(["lstm", "gru", "rnn_tanh", "rnn_relu"], _recurrent),
    **dict.fromkeys(["lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"], _cell),
    "einsum": _einsum,
}
"""Operator without namespace and overload -> how it counts."""
