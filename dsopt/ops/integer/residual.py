"""q_conv_add: a convolution whose result is added to a residual before it is stored."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dsopt.ops.integer.common import Array, integer_operator
from dsopt.ops.integer.elementwise import q_add
from dsopt.ops.integer.linear import CONVOLUTION, CONVOLUTION_ARGUMENTS, convolution_shape, q_conv


def q_conv_add(*arguments: Any) -> Array:
    """Return q_add(q_conv(...), residual, ...): both are rounded as if they were on their own, to int8.

    The arguments are those of q_conv, the residual, its zero point, the factors of the convolution and of the residual, the shift
    of their sum, and its zero point and bounds.
    """
    y = q_conv(*arguments[:CONVOLUTION_ARGUMENTS])
    residual, *numbers = arguments[CONVOLUTION_ARGUMENTS:]
    rest: tuple[Any, ...] = (arguments[CONVOLUTION_ARGUMENTS - 5], *numbers, 8)
    return q_add(y, residual, *rest)


def _shape(*arguments: Any) -> Tensor:
    return convolution_shape(*arguments[:CONVOLUTION_ARGUMENTS])


integer_operator(
    f"q_conv_add({CONVOLUTION}, Tensor residual, int residual_zero, int factor, int residual_factor, int sum_shift, int sum_zero, "
    "int sum_low, int sum_high) -> Tensor",
    q_conv_add,
    _shape,
)
