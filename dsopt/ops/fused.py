"""Convolution, linear layer and addition with the activation that follows them, as `fuse-activation` writes them.

The reference is plain torch and is what every backend's kernel is tested against. It is made of differentiable torch calls, so
that shape rule, gradient and reference cannot disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dsopt.ops.library import register_composite

ACTIVATIONS: dict[str, tuple[int, Callable[..., Tensor]]] = {
    "none": (0, lambda x: x),
    "relu": (0, F.relu),
    "relu6": (0, F.relu6),
    "clamp": (2, lambda x, low, high: torch.clamp(x, low, high)),
    "leaky_relu": (1, F.leaky_relu),
    "elu": (1, F.elu),
    "hardswish": (0, F.hardswish),
    "hardsigmoid": (0, F.hardsigmoid),
    "sigmoid": (0, torch.sigmoid),
    "tanh": (0, torch.tanh),
    "gelu": (0, F.gelu),
    "gelu_tanh": (0, lambda x: F.gelu(x, approximate="tanh")),
    "silu": (0, F.silu),
}
"""Activation name -> (number of parameters, function of the tensor and its parameters)."""


def activate(x: Tensor, activation: str, params: Sequence[float]) -> Tensor:
    """Apply an activation of `ACTIVATIONS` elementwise. x: any shape, float. Raises ValueError for an unknown name or arity."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
    arity, function = ACTIVATIONS[activation]
    if len(params) != arity:
        raise ValueError(f"activation {activation!r} takes {arity} parameters, got {list(params)}")
    return function(x, *params)


def conv_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    activation: str,
    params: Sequence[float],
) -> Tensor:
    """Convolve in 1 to 3 spatial dims, add the bias and apply the activation.

    x: (B, C, *spatial) float; weight: (N, C / groups, *kernel), or (C, N / groups, *kernel) when transposed; bias: (N,).
    Returns (B, N, *spatial') float.
    """
    y = torch.convolution(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups)
    return activate(y, activation, params)


def linear_act(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, params: Sequence[float]) -> Tensor:
    """Return activation(x weight^T + bias). x: (..., K) float; weight: (N, K); bias: (N,). Returns (..., N) float."""
    return activate(F.linear(x, weight, bias), activation, params)


def add_act(x: Tensor, y: Tensor, activation: str, params: Sequence[float]) -> Tensor:
    """Return activation(x + y), broadcast. x, y: float tensors."""
    return activate(x + y, activation, params)


register_composite(
    "conv_act(Tensor x, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding, SymInt[] dilation, bool transposed, "
    "SymInt[] output_padding, SymInt groups, str activation, float[] params) -> Tensor",
    conv_act,
)
register_composite(
    "linear_act(Tensor x, Tensor weight, Tensor? bias, str activation, float[] params) -> Tensor", linear_act
)
register_composite("add_act(Tensor x, Tensor y, str activation, float[] params) -> Tensor", add_act)
