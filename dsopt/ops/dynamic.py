"""A linear layer whose stored weight is integers and whose activations are rounded to integers when it runs.

    step = max|x| / 127         of each row, or of the whole tensor; symmetric, so that zero is the integer 0
    y    = (sum over k of rint(x / step)[k] * weight[n, k]) * step * scale[n] + bias[n]

The sum is exact; the rest is float32. Nothing is calibrated: see Zafrir et al. 2019, "Q8BERT", section 2, for the static form.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsopt.ops.library import register_opaque
from dsopt.ops.quantized import SMALLEST_SCALE

LEVELS = 127
"""The integers of an activation are -LEVELS to LEVELS."""


def dynamic_steps(x: Tensor, per_row: bool) -> Tensor:
    """Return the steps of x, (..., K): of each row, (..., 1), or of the tensor, of as many dims of size 1."""
    dims = (-1,) if per_row else tuple(range(x.dim()))
    return (x.abs().amax(dims, keepdim=True) / x.new_tensor(float(LEVELS))).clamp_min(SMALLEST_SCALE)


def dynamic_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, bits: int, per_row: bool) -> Tensor:
    """Return the layer's result for x, (..., K) float32, as (..., N) float32.

    weight: (N, K) int8, of `bits` bits, 4 or 8, where they are stored.  scale: (N,) float32, of a row of the weight.  bias: (N,).
    """
    if x.numel() == 0:
        return x.new_zeros(*x.shape[:-1], weight.shape[0]) + (0 if bias is None else bias)
    step = dynamic_steps(x, per_row)
    integers = torch.clamp(torch.round(x / step), -LEVELS, LEVELS)
    sums = (integers.double() @ weight.double().mT).float()  # exact: below 2^53, and rounded to float32 once
    y = sums * step * scale
    return y if bias is None else y + bias


register_opaque(
    "dynamic_linear(Tensor x, Tensor weight, Tensor scale, Tensor? bias, int bits, bool per_row) -> Tensor",
    dynamic_linear,
    lambda x, weight, *rest: x.new_empty((*x.shape[:-1], weight.shape[0])),
)
