"""q_conv_add as two kernels: a convolution, and a sum over its result."""

from __future__ import annotations

from typing import Any

from dsopt.backends.tir.program import Buffer
from dsopt.backends.tir.registry import LOWERINGS, Context, lowering
from dsopt.ops.integer.linear import CONVOLUTION_ARGUMENTS


@lowering("dsopt.q_conv_add.default")
def _conv_add(context: Context, *arguments: Any) -> Buffer:
    y = LOWERINGS["dsopt.q_conv.default"](context, *arguments[:CONVOLUTION_ARGUMENTS])
    residual, residual_zero, *factors = arguments[CONVOLUTION_ARGUMENTS:]
    y_zero = arguments[CONVOLUTION_ARGUMENTS - 5]
    result = LOWERINGS["dsopt.q_add.default"](context, y, residual, y_zero, residual_zero, *factors, 8)
    assert isinstance(result, Buffer)
    return result
