"""Normalisation: by running statistics, by the input's own, and by norms."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dsopt.frontend.onnx_reader.call import Call, axis_in, to_type
from dsopt.frontend.onnx_reader.problems import MalformedError
from dsopt.frontend.onnx_reader.registry import operator
from dsopt.frontend.onnx_reader.tensors import DTYPES


def _refuse_training(call: Call) -> tuple[str, str] | None:
    if call.integer("training_mode", 0):
        return "BatchNormalization in training mode", "training_mode=0, as exported by model.eval()"
    return None


@operator("BatchNormalization", refuse=_refuse_training)
def batch_normalization(call: Call) -> Tensor:
    """Normalise each channel by stored statistics."""
    x, weight, bias, mean, variance = (call.tensor(index) for index in range(5))
    dtype = x.dtype
    if any(item.dtype != dtype for item in (weight, bias, mean, variance)):
        x, weight, bias, mean, variance = (to_type(item, torch.float32) for item in (x, weight, bias, mean, variance))
    return to_type(F.batch_norm(x, mean, variance, weight, bias, False, 0.1, call.real("epsilon", 1e-5)), dtype)


@operator("InstanceNormalization")
def instance_normalization(call: Call) -> Tensor:
    """Normalise each plane by its own statistics."""
    return F.instance_norm(call.tensor(0), weight=call.tensor(1), bias=call.tensor(2), eps=call.real("epsilon", 1e-5))


@operator("LayerNormalization")
def layer_normalization(call: Call) -> Tensor | tuple[Tensor, ...]:
    """Normalise over the axes from `axis` on; mean and inverse deviation on demand."""
    x = call.tensor(0)
    axis, epsilon = axis_in(call.integer("axis", -1), x.dim()), call.real("epsilon", 1e-5)
    shape = list(x.shape[axis:])
    weight, bias = _filling(call, 1, shape), _filling(call, 2, shape)
    y = F.layer_norm(x, shape, weight, bias, epsilon)
    if call.output_count == 1:
        return y
    stash = to_type(x, _stash_type(call))
    axes = list(range(axis, x.dim()))
    mean = stash.mean(axes, keepdim=True)
    variance = (stash - mean).square().mean(axes, keepdim=True)
    return y, mean, torch.rsqrt(variance + epsilon)


def _filling(call: Call, index: int, shape: list[int]) -> Tensor | None:
    """Return an optional scale or bias in the shape that is normalised over, which torch wants in full."""
    if not call.has(index):
        return None
    tensor = call.tensor(index)
    while tensor.dim() > len(shape) and tensor.shape[0] == 1:
        tensor = tensor.squeeze(0)
    return tensor if tensor.dim() == len(shape) and tensor.shape == torch.Size(shape) else tensor.expand(shape)


def _stash_type(call: Call) -> torch.dtype:
    return DTYPES.get(call.integer("stash_type", 1), torch.float32)


@operator("RMSNormalization")
def rms_normalization(call: Call) -> Tensor:
    """Divide by the root mean square over the axes from `axis` on."""
    x = call.tensor(0)
    axis = axis_in(call.integer("axis", -1), x.dim())
    shape = list(x.shape[axis:])
    return F.rms_norm(x, shape, _filling(call, 1, shape), call.real("epsilon", 1e-5))


@operator("GroupNormalization")
def group_normalization(call: Call) -> Tensor:
    """Normalise groups of channels; before opset 21, scale and bias are one for each group."""
    x, weight, bias = call.tensor(0), call.tensor(1), call.tensor(2)
    groups = call.integer("num_groups", 1)
    channels = x.shape[1]
    if groups < 1 or channels % groups:
        raise MalformedError(f"{channels} channels do not make {groups} groups")
    if weight.shape[0] != channels:
        weight, bias = (item.repeat_interleave(channels // groups) for item in (weight, bias))
    return F.group_norm(x, groups, weight, bias, call.real("epsilon", 1e-5))


@operator("LRN")
def local_response_normalization(call: Call) -> Tensor:
    """Divide by the energy of the neighbouring channels."""
    x, size = call.tensor(0), call.integer("size", 1)
    alpha, beta, bias = call.real("alpha", 1e-4), call.real("beta", 0.75), call.real("bias", 1.0)
    if size % 2:
        return F.local_response_norm(x, size, alpha, beta, bias)
    # torch puts the larger half of an even window before the channel, ONNX after it
    squares = F.pad(x.square().flatten(2).unsqueeze(1), [0, 0, (size - 1) // 2, size // 2])
    energy = F.avg_pool2d(squares, (size, 1), 1).squeeze(1).reshape(x.shape)
    return x / (energy * alpha + bias).pow(beta)


@operator("LpNormalization")
def lp_normalization(call: Call) -> Tensor:
    """Divide by the p-norm along an axis; where that is 0 the result is 0."""
    x, p = call.tensor(0), call.integer("p", 2)
    axis = axis_in(call.integer("axis", -1), x.dim())
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


@operator("MeanVarianceNormalization")
def mean_variance_normalization(call: Call) -> Tensor:
    """Subtract the mean and divide by the deviation over axes."""
    x, axes = call.tensor(0), call.integers("axes", (0, 2, 3))
    mean = x.mean(axes, keepdim=True)
    deviation = (x.square().mean(axes, keepdim=True) - mean.square()).sqrt()
    return (x - mean) / (deviation + 1e-9)
