"""Linear layers whose activations are rounded when they run, as MatMulInteger of uint8 and int8.

ONNX Runtime 1.32 has fast kernels for uint8 activations only: those of int8, 128 lower, took 50 times as long on a CPU with VNNI.
"""

from __future__ import annotations

import torch
from torch import fx

from dsopt.backends.cpu.builder import Value
from dsopt.backends.cpu.emitter import Emitter
from dsopt.backends.cpu.kernels import INT4
from dsopt.backends.cpu.registry import RefusalError, converter
from dsopt.ops.dynamic import LEVELS
from dsopt.ops.quantized import SMALLEST_SCALE

MIDDLE = 128
"""The uint8 that stands for 0."""


@converter("dsopt.dynamic_linear.default")
def convert_dynamic_linear(
    cx: Emitter, x: fx.Node, weight: fx.Node, scale: fx.Node, bias: fx.Node | None, bits: int, per_row: bool
) -> Value:
    """Write rounding, an integer product, and scaling. Layers that read the same activation share its rounding."""
    values, steps = cx.weight(weight), cx.weight(scale)
    if values is None or steps is None:
        raise RefusalError("its weight is computed", "keep its integers and their scale as stored tensors")
    integers, step = cx.once(("dynamic", x, per_row), lambda: _rounded(cx, x, per_row))
    matrix = cx.derive(f"{cx.weight_name(weight)}.transposed", values.mT, INT4 if bits == 4 else None)
    matrix = cx.cast(matrix, torch.int8)
    sums = cx.op("MatMulInteger", integers, matrix, cx.constant(MIDDLE, torch.uint8), dtype=torch.int32)
    y = cx.cast(sums, torch.float32)
    factor = cx.constant(steps, torch.float32)
    # of the two forms, ONNX Runtime fuses the second with the product
    y = cx.op("Mul", cx.op("Mul", y, step), factor) if per_row else cx.op("Mul", y, cx.op("Mul", step, factor))
    y = y if bias is None else cx.op("Add", y, cx.value(bias))
    if not per_row or cx.rank(x) == 2:
        return y
    return cx.op("Reshape", y, cx.sizes([*(cx.extent(x, axis) for axis in range(cx.rank(x) - 1)), cx.out.shape[-1]]))


def _rounded(cx: Emitter, x: fx.Node, per_row: bool) -> tuple[Value, Value]:
    """Return the integers, and the step: of each row, (rows, 1), of x as a matrix (rows, K), or one number."""
    value = cx.value(x)
    if per_row and cx.rank(x) != 2:
        value = cx.op("Reshape", value, cx.vector([-1, cx.fixed(cx.shape(x)[-1], "the number of inputs")]))
    largest = cx.op("ReduceMax", cx.op("Abs", value), cx.vector([1]) if per_row else None, keepdims=0)
    step = cx.op("Div", largest, cx.constant(float(LEVELS), torch.float32))
    step = cx.op("Max", step, cx.constant(SMALLEST_SCALE, torch.float32))
    middle = cx.constant(MIDDLE, torch.uint8)
    if not per_row:
        return cx.op("QuantizeLinear", value, step, middle, dtype=torch.uint8), step
    middles = cx.op("Expand", middle, cx.op("Shape", step, dtype=torch.int64))
    integers = cx.op("QuantizeLinear", value, step, middles, dtype=torch.uint8, axis=0)
    return integers, cx.unsqueeze(step, 1)
