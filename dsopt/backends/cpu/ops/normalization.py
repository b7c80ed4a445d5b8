"""Normalisation over batches, layers, groups and instances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from dsopt.backends.cpu.builder import Value
from dsopt.backends.cpu.emitter import Emitter
from dsopt.backends.cpu.registry import RefusalError, converter


@converter("aten.batch_norm.default")
def convert_batch_norm(
    cx: Emitter,
    x: fx.Node,
    weight: fx.Node | None,
    bias: fx.Node | None,
    running_mean: fx.Node | None,
    running_var: fx.Node | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = False,
) -> Value:
    """Write batch_norm with its running statistics."""
    return _batch_norm(cx, x, weight, bias, running_mean, running_var, training, eps)


@converter("aten._native_batch_norm_legit_no_training.default")
def convert_native_batch_norm(
    cx: Emitter,
    x: fx.Node,
    weight: fx.Node | None,
    bias: fx.Node | None,
    running_mean: fx.Node,
    running_var: fx.Node,
    momentum: float,
    eps: float,
) -> tuple[Value, None, None]:
    """Write the form with three results, of which inference gives the first."""
    _refuse_other_results(cx)
    return _batch_norm(cx, x, weight, bias, running_mean, running_var, False, eps), None, None


@converter("aten.native_batch_norm.default", "aten.cudnn_batch_norm.default")
def convert_full_batch_norm(
    cx: Emitter,
    x: fx.Node,
    weight: fx.Node | None,
    bias: fx.Node | None,
    running_mean: fx.Node | None,
    running_var: fx.Node | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Value, None, None]:
    """Write the form with three results and a training flag."""
    _refuse_other_results(cx)
    return _batch_norm(cx, x, weight, bias, running_mean, running_var, training, eps), None, None


def _refuse_other_results(cx: Emitter) -> None:
    if cx.used(1) or cx.used(2):
        raise RefusalError("the saved statistics of a normalisation are read", "use the first result only")


def _batch_norm(
    cx: Emitter, x: fx.Node, weight: Any, bias: Any, mean: Any, var: Any, training: bool, eps: float
) -> Value:
    value, rank = cx.value(x), cx.rank(x)
    if training or mean is None or var is None:
        if rank < 3:
            raise RefusalError(
                "batch_norm without running statistics on a matrix", "call model.eval() before capturing"
            )
        return _standardised(
            cx, value, [0, *range(2, rank)], eps, *(_column(cx, each, rank) for each in (weight, bias))
        )
    channels = cx.fixed(cx.shape(mean)[0], "the number of channels")
    scale = cx.value(weight) if weight is not None else cx.constant(torch.ones(channels), value.dtype)
    shift = cx.value(bias) if bias is not None else cx.constant(torch.zeros(channels), value.dtype)
    return cx.op("BatchNormalization", value, scale, shift, cx.value(mean), cx.value(var), epsilon=eps)


def _column(cx: Emitter, weight: fx.Node | None, rank: int) -> Value | None:
    """Return a vector of channels shaped to broadcast along axis 1 of a tensor of `rank`."""
    if weight is None:
        return None
    stored = cx.weight(weight)
    if stored is not None and len(weight.users) == 1:
        return cx.derive(f"{cx.weight_name(weight)}.column", stored.reshape(-1, *(1,) * (rank - 2)))
    return cx.unsqueeze(cx.value(weight), *range(1, rank - 1))


def _standardised(
    cx: Emitter, value: Value, axes: Sequence[int], eps: float, scale: Value | None, shift: Value | None
) -> Value:
    """Return (x - mean) / sqrt(var + eps) * scale + shift over given axes."""
    mean = cx.op("ReduceMean", value, cx.vector(axes), keepdims=1)
    centred = cx.op("Sub", value, mean)
    var = cx.op("ReduceMean", cx.op("Mul", centred, centred), cx.vector(axes), keepdims=1)
    deviation = cx.op("Sqrt", cx.op("Add", var, cx.constant(eps, value.dtype)))
    y = cx.op("Div", centred, deviation)
    y = y if scale is None else cx.op("Mul", y, scale)
    return y if shift is None else cx.op("Add", y, shift)


@converter("aten.layer_norm.default")
def convert_layer_norm(
    cx: Emitter,
    x: fx.Node,
    normalized_shape: Sequence[Any],
    weight: fx.Node | None = None,
    bias: fx.Node | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Value:
    """Write layer_norm over the last axes."""
    value = cx.value(x)
    if weight is not None:
        scale = cx.value(weight)
    else:
        sizes = [cx.fixed(size, "the normalised dim") for size in normalized_shape]
        scale = cx.constant(torch.ones(sizes), value.dtype)
    return cx.op("LayerNormalization", value, scale, cx.optional(bias), axis=-len(normalized_shape), epsilon=eps)


@converter("aten.native_layer_norm.default")
def convert_native_layer_norm(
    cx: Emitter, x: fx.Node, normalized_shape: Sequence[Any], weight: fx.Node | None, bias: fx.Node | None, eps: float
) -> tuple[Value, None, None]:
    """Write the form with three results, of which inference gives the first."""
    _refuse_other_results(cx)
    return convert_layer_norm(cx, x, normalized_shape, weight, bias, eps), None, None


@converter("aten.rms_norm.default")
def convert_rms_norm(
    cx: Emitter, x: fx.Node, normalized_shape: Sequence[Any], weight: fx.Node | None = None, eps: float | None = None
) -> Value:
    """Write x / sqrt(mean(x x) + eps) * weight over the last axes."""
    value, axes = cx.value(x), list(range(cx.rank(x) - len(normalized_shape), cx.rank(x)))
    small = torch.finfo(value.dtype).eps if eps is None else eps
    # Pow, not Mul: this is the chain that ONNX Runtime fuses into its own kernel
    power = cx.op("ReduceMean", cx.op("Pow", value, cx.constant(2.0, value.dtype)), cx.vector(axes), keepdims=1)
    y = cx.op("Div", value, cx.op("Sqrt", cx.op("Add", power, cx.constant(small, value.dtype))))
    return y if weight is None else cx.op("Mul", y, cx.value(weight))


@converter("aten.instance_norm.default")
def convert_instance_norm(
    cx: Emitter,
    x: fx.Node,
    weight: fx.Node | None,
    bias: fx.Node | None,
    running_mean: fx.Node | None,
    running_var: fx.Node | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = False,
) -> Value:
    """Write instance_norm; with running statistics it is batch_norm."""
    if not use_input_stats:
        return _batch_norm(cx, x, weight, bias, running_mean, running_var, False, eps)
    value = cx.value(x)
    channels = cx.fixed(cx.shape(x)[1], "the number of channels")
    scale = cx.value(weight) if weight is not None else cx.constant(torch.ones(channels), value.dtype)
    shift = cx.value(bias) if bias is not None else cx.constant(torch.zeros(channels), value.dtype)
    return cx.op("InstanceNormalization", value, scale, shift, epsilon=eps)


@converter("aten.group_norm.default")
def convert_group_norm(
    cx: Emitter,
    x: fx.Node,
    num_groups: int,
    weight: fx.Node | None = None,
    bias: fx.Node | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Value:
    """Write group_norm as instance_norm of (B, groups, elements), then the channels' own scale and shift."""
    value, shape = cx.value(x), cx.shape(x)
    grouped = cx.op("Reshape", value, cx.vector([0, num_groups, -1]))
    ones = cx.constant(torch.ones(num_groups), value.dtype)
    zeros = cx.constant(torch.zeros(num_groups), value.dtype)
    y = cx.op("InstanceNormalization", grouped, ones, zeros, epsilon=eps)
    rest = [size for size in shape[1:] if isinstance(size, int)]
    if len(rest) == len(shape) - 1:
        y = cx.op("Reshape", y, cx.vector([0, *rest]))
    else:
        y = cx.op("Reshape", y, cx.op("Shape", value, dtype=torch.int64))
    scale, shift = _column(cx, weight, len(shape)), _column(cx, bias, len(shape))
    y = y if scale is None else cx.op("Mul", y, scale)
    return y if shift is None else cx.op("Add", y, shift)


@converter("aten.native_group_norm.default")
def convert_native_group_norm(
    cx: Emitter,
    x: fx.Node,
    weight: fx.Node | None,
    bias: fx.Node | None,
    batch: Any,
    channels: Any,
    elements: Any,
    group: int,
    eps: float,
) -> tuple[Value, None, None]:
    """Write the form with three results, of which inference gives the first."""
    _refuse_other_results(cx)
    return convert_group_norm(cx, x, group, weight, bias, eps), None, None


@converter("aten._weight_norm.default")
def convert_weight_norm(cx: Emitter, v: fx.Node, g: fx.Node, dim: int = 0) -> Value:
    """Write g v / |v|, the norm over all axes but one."""
    direction, rank = cx.value(v), cx.rank(v)
    axes = [axis for axis in range(rank) if axis != cx.axis(dim, rank)] if dim != -1 else list(range(rank))
    norm = cx.op("ReduceL2", direction, cx.vector(axes), keepdims=1)
    return cx.op("Mul", direction, cx.op("Div", cx.value(g), norm))
