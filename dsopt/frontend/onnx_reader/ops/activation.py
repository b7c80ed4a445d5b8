"""Activation functions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dsopt.frontend.onnx_reader.call import Call, axis_in, to_type
from dsopt.frontend.onnx_reader.lower_activations import SILU
from dsopt.frontend.onnx_reader.registry import operator, register_all

SELU_ALPHA, SELU_GAMMA = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946

register_all(
    (
        ("Relu", lambda call: torch.relu(call.tensor(0))),
        ("Sigmoid", lambda call: torch.sigmoid(call.tensor(0))),
        ("Tanh", lambda call: torch.tanh(call.tensor(0))),
        ("Softplus", lambda call: F.softplus(call.tensor(0))),
        ("Softsign", lambda call: F.softsign(call.tensor(0))),
        (SILU, lambda call: F.silu(call.tensor(0))),
        ("HardSwish", lambda call: F.hardswish(call.tensor(0))),
        ("Mish", lambda call: F.mish(call.tensor(0))),
        ("LeakyRelu", lambda call: F.leaky_relu(call.tensor(0), call.real("alpha", 0.01))),
        ("Elu", lambda call: F.elu(call.tensor(0), call.real("alpha", 1.0))),
        ("Celu", lambda call: F.celu(call.tensor(0), call.real("alpha", 1.0))),
    )
)


@operator("HardSigmoid")
def hard_sigmoid(call: Call) -> Tensor:
    """Clamp a line to 0..1; with slope 1/6 it is torch's."""
    x, alpha, beta = call.tensor(0), call.real("alpha", 0.2), call.real("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


@operator("Selu")
def selu(call: Call) -> Tensor:
    """Scaled elu; torch has the constants of the paper only."""
    alpha, gamma = call.real("alpha", SELU_ALPHA), call.real("gamma", SELU_GAMMA)
    if math.isclose(alpha, SELU_ALPHA, rel_tol=1e-6) and math.isclose(gamma, SELU_GAMMA, rel_tol=1e-6):
        return F.selu(call.tensor(0))
    return F.elu(call.tensor(0), alpha) * gamma


@operator("PRelu")
def prelu(call: Call) -> Tensor:
    """Leaky relu with a learned slope: one, one for each channel, or any that broadcasts to the input."""
    x, slope = call.tensor(0), call.tensor(1)
    per_channel = x.dim() >= 2 and slope.dim() == x.dim() - 1 and slope.numel() == slope.shape[0] == x.shape[1]
    if x.is_floating_point() and (slope.numel() == 1 or per_channel):
        return F.prelu(x, slope.reshape(-1))
    return torch.where(x < 0, x * slope, x)


@operator("Gelu")
def gelu(call: Call) -> Tensor:
    """Gaussian error linear unit."""
    return F.gelu(call.tensor(0), approximate="tanh" if call.text("approximate", "none") == "tanh" else "none")


@operator("Swish")
def swish(call: Call) -> Tensor:
    """x * sigmoid(alpha * x)."""
    x, alpha = call.tensor(0), call.real("alpha", 1.0)
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(x * alpha)


@operator("SwiGLU")
def swiglu(call: Call) -> Tensor:
    """Multiply by the swish of a gate."""
    return swish(call) * call.tensor(1)


@operator("ThresholdedRelu")
def thresholded_relu(call: Call) -> Tensor:
    """Keep what is above alpha, else 0."""
    return F.threshold(call.tensor(0), call.real("alpha", 1.0), 0.0)


@operator("Shrink")
def shrink(call: Call) -> Tensor:
    """Move towards zero by `bias` what is further from it than `lambd`, and drop the rest."""
    x, bias, threshold = call.tensor(0), call.real("bias", 0.0), call.real("lambd", 0.5)
    zero = torch.zeros_like(x)
    shrunk = torch.where(x < -threshold, x + bias, torch.where(x > threshold, x - bias, zero))
    return to_type(shrunk, x.dtype)


def _over_axis(call: Call) -> tuple[Tensor, int, bool]:
    """Return the input, the axis, and whether all axes from it on count as one, as before opset 13."""
    x = call.tensor(0)
    old = call.version < 13
    axis = axis_in(call.integer("axis", 1 if old else -1), x.dim())
    return x, axis, old and axis < x.dim() - 1


@operator("Softmax")
def softmax(call: Call) -> Tensor:
    """Softmax over an axis."""
    x, axis, joined = _over_axis(call)
    return torch.softmax(x.flatten(axis), axis).reshape(x.shape) if joined else torch.softmax(x, axis)


@operator("LogSoftmax")
def log_softmax(call: Call) -> Tensor:
    """Logarithm of softmax over an axis."""
    x, axis, joined = _over_axis(call)
    return torch.log_softmax(x.flatten(axis), axis).reshape(x.shape) if joined else torch.log_softmax(x, axis)


@operator("Hardmax")
def hardmax(call: Call) -> Tensor:
    """One at the first largest element along an axis, zero elsewhere."""
    x, axis, joined = _over_axis(call)
    flat = x.flatten(axis) if joined else x
    index = flat.argmax(axis, keepdim=True)
    return torch.zeros_like(flat).scatter(axis, index, 1.0).reshape(x.shape)
