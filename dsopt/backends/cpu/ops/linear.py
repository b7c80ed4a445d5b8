"""Linear layers and matrix products."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from dsopt.backends.cpu.builder import Value
from dsopt.backends.cpu.emitter import Emitter
from dsopt.backends.cpu.integers import (
    BYTES,
    Integers,
    is_inside,
    kept_float,
    stored_integers,
    write,
    write_bias,
    write_folded,
)
from dsopt.backends.cpu.ops.activation import activate
from dsopt.backends.cpu.registry import RefusalError, converter

_LINEAR = (torch.ops.aten.linear.default, torch.ops.dsopt.linear_act.default)


@converter("aten.linear.default")
def convert_linear(cx: Emitter, x: fx.Node, weight: fx.Node, bias: fx.Node | None = None) -> Value:
    """Write x weight^T + bias: Gemm for a matrix, else MatMul and Add, which ONNX Runtime fuses with what follows."""
    stored = stored_integers(cx, weight)
    if stored is not None and cx.rank(weight) == 2:
        return _convert_quantized(cx, x, weight, bias, stored)
    if cx.rank(x) == 2 and cx.dtype.is_floating_point and cx.rank(weight) == 2:
        return kept_float(cx, x, cx.op("Gemm", cx.value(x), cx.value(weight), cx.optional(bias), transB=1))
    y = cx.op("MatMul", cx.value(x), transposed(cx, weight))
    return kept_float(cx, x, y if bias is None else cx.op("Add", y, cx.value(bias)))


@converter("dsopt.linear_act.default")
def convert_linear_act(
    cx: Emitter, x: fx.Node, weight: fx.Node, bias: fx.Node | None, activation: str, params: Sequence[float]
) -> Value:
    """Write a linear layer and its activation."""
    return activate(cx, convert_linear(cx, x, weight, bias), activation, params)


def _convert_quantized(cx: Emitter, x: fx.Node, weight: fx.Node, bias: fx.Node | None, stored: Integers) -> Value:
    """Write a linear layer with an integer weight, which is stored transposed if nothing else reads it.

    Only Gemm is fused with a bias, and only a bias of integers; what has more dims than a matrix is reshaped around it.
    """
    added, is_integer = write_bias(cx, x, weight, bias)
    if not is_inside(cx, x) or stored.group or (stored.scale.dim() and stored.axis != 0):
        y = cx.op("MatMul", cx.value(x), cx.transpose(write_folded(cx, stored), [1, 0]))
        return kept_float(cx, x, y if added is None else cx.op("Add", y, added))
    is_turned = all(user.target in _LINEAR and user.args.index(weight) == 1 for user in weight.users)
    matrix = write(cx, stored, is_turned=is_turned, is_widened=True)
    if is_integer:
        rank = cx.rank(x)
        flat = cx.value(x) if rank == 2 else cx.op("Reshape", cx.value(x), cx.vector([-1, stored.values.shape[1]]))
        y = cx.op("Gemm", flat, matrix, added, transB=None if is_turned else 1)
        sizes = [*(cx.extent(x, axis) for axis in range(rank - 1)), cx.out.shape[-1]]
        return y if rank == 2 else cx.op("Reshape", y, cx.sizes(sizes))
    y = cx.op("MatMul", cx.value(x), matrix if is_turned else cx.transpose(matrix, [1, 0]))
    return y if added is None else kept_float(cx, x, cx.op("Add", y, added))


def transposed(cx: Emitter, weight: fx.Node) -> Value:
    """Return a matrix with its axes swapped; a weight that nothing else reads is stored that way."""
    stored = cx.weight(weight)
    if cx.rank(weight) < 2:
        return cx.value(weight)
    if stored is None or len(weight.users) > 1:
        order = [*range(cx.rank(weight) - 2), cx.rank(weight) - 1, cx.rank(weight) - 2]
        return cx.transpose(cx.value(weight), order)
    return cx.derive(f"{cx.weight_name(weight)}.transposed", stored.mT)


@converter("aten.matmul.default", "aten.mm.default", "aten.bmm.default", "aten.mv.default", "aten.dot.default")
def convert_matmul(cx: Emitter, a: fx.Node, b: fx.Node) -> Value:
    """Write a matrix product; ONNX's MatMul has the ranks and the broadcasting of torch's."""
    return cx.op("MatMul", cx.value(a), _right(cx, a, b))


def _right(cx: Emitter, a: fx.Node, b: fx.Node) -> Value:
    """Return the right operand of a product; stored integers as floats, unless ONNX Runtime computes with them exactly."""
    stored = stored_integers(cx, b)
    if stored is None or stored.values.dtype not in BYTES:
        return cx.value(b)
    is_plain = not stored.group and (not stored.scale.dim() or (stored.values.dim() == 2 and stored.axis % 2 == 1))
    return write(cx, stored, is_widened=True) if is_plain and is_inside(cx, a) else write_folded(cx, stored)


@converter("aten.addmm.default")
def convert_addmm(cx: Emitter, bias: fx.Node, a: fx.Node, b: fx.Node, *, beta: float = 1, alpha: float = 1) -> Value:
    """Write beta bias + alpha a b."""
    if cx.dtype.is_floating_point:
        inputs = cx.value(a), cx.value(b), None if beta == 0 else cx.value(bias)
        return cx.op("Gemm", *inputs, alpha=_factor(alpha), beta=_factor(beta))
    return _scaled_sum(cx, bias, cx.op("MatMul", cx.value(a), cx.value(b)), beta, alpha)


@converter("aten.addmv.default", "aten.baddbmm.default")
def convert_baddbmm(cx: Emitter, bias: fx.Node, a: fx.Node, b: fx.Node, *, beta: float = 1, alpha: float = 1) -> Value:
    """Write beta bias + alpha a b, with a vector or a batch."""
    return _scaled_sum(cx, bias, cx.op("MatMul", cx.value(a), cx.value(b)), beta, alpha)


@converter("aten.addbmm.default")
def convert_addbmm(cx: Emitter, bias: fx.Node, a: fx.Node, b: fx.Node, *, beta: float = 1, alpha: float = 1) -> Value:
    """Write beta bias + alpha times the sum of a batch of products."""
    product = cx.op("MatMul", cx.value(a), cx.value(b))
    return _scaled_sum(cx, bias, cx.op("ReduceSum", product, cx.vector([0]), keepdims=0), beta, alpha)


@converter("aten.addr.default")
def convert_addr(cx: Emitter, bias: fx.Node, a: fx.Node, b: fx.Node, *, beta: float = 1, alpha: float = 1) -> Value:
    """Write beta bias + alpha a b^T of two vectors."""
    return _scaled_sum(cx, bias, _outer(cx, a, b), beta, alpha)


@converter("aten.outer.default", "aten.ger.default")
def convert_outer(cx: Emitter, a: fx.Node, b: fx.Node) -> Value:
    """Write the product of a column and a row."""
    return _outer(cx, a, b)


def _outer(cx: Emitter, a: fx.Node, b: fx.Node) -> Value:
    left, right = cx.cast(cx.value(a), cx.dtype), cx.cast(cx.value(b), cx.dtype)
    return cx.op("Mul", cx.unsqueeze(left, 1), cx.unsqueeze(right, 0))


def _scaled_sum(cx: Emitter, bias: fx.Node, product: Value, beta: float, alpha: float) -> Value:
    if alpha != 1:
        product = cx.op("Mul", product, cx.constant(alpha, product.dtype))
    if beta == 0:
        return product
    added = cx.value(bias)
    if beta != 1:
        added = cx.op("Mul", added, cx.constant(beta, added.dtype))
    return cx.op("Add", added, product)


def _factor(value: float) -> float | None:
    return None if value == 1 else float(value)


@converter("aten.einsum.default")
def convert_einsum(cx: Emitter, equation: str, tensors: Sequence[fx.Node], *, path: object = None) -> Value:
    """Write an einsum: as Transpose and MatMul where it is one batched product, else as ONNX's Einsum."""
    plain = equation.replace(" ", "")
    if "->" not in plain:
        labels = [char for char in plain if char.isalpha()]
        once = sorted(char for char in set(labels) if labels.count(char) == 1)
        plain += "->" + ("..." if "." in plain else "") + "".join(once)
    values = [cx.cast(cx.value(each), cx.dtype) for each in tensors]
    product = _as_matmul(cx, plain, values) if len(values) == 2 else None
    if product is not None:
        return product
    if cx.dtype not in (torch.float32, torch.float64, torch.float16, torch.int64, torch.int32):
        raise RefusalError(f"an einsum of {cx.dtype} values", "use floating point")
    return cx.op("Einsum", *values, equation=plain)


def _as_matmul(cx: Emitter, equation: str, values: Sequence[Value]) -> Value | None:
    """Return batch m k, batch k n -> batch m n, with one label for each of m, k and n; None where the equation is another."""
    terms, _, result = equation.partition("->")
    left, _, right = terms.partition(",")
    if "." in equation or any(len(set(term)) != len(term) for term in (left, right, result)):
        return None
    batch = [label for label in result if label in left and label in right]
    row = [label for label in result if label in left and label not in right]
    column = [label for label in result if label in right and label not in left]
    inner = [label for label in left if label in right and label not in result]
    if [len(row), len(column), len(inner)] != [1, 1, 1] or len(left) != len(batch) + 2 or len(right) != len(batch) + 2:
        return None
    first = cx.transpose(values[0], [left.index(label) for label in [*batch, *row, *inner]])
    second = cx.transpose(values[1], [right.index(label) for label in [*batch, *inner, *column]])
    order = [*batch, *row, *column]
    return cx.transpose(cx.op("MatMul", first, second), [order.index(label) for label in result])


@converter("aten.bilinear.default")
def convert_bilinear(cx: Emitter, a: fx.Node, b: fx.Node, weight: fx.Node, bias: fx.Node | None = None) -> Value:
    """Write a bilinear layer: a weight[n] b for each output n."""
    y = cx.op("Einsum", cx.value(a), cx.value(weight), cx.value(b), equation="...i,nij,...j->...n")
    return y if bias is None else cx.op("Add", y, cx.value(bias))
