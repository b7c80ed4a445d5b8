"""Convolutions in one to three spatial dims, transposed ones too, with numeric and named padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from dsopt.backends.cpu.builder import Value
from dsopt.backends.cpu.emitter import Emitter
from dsopt.backends.cpu.integers import is_inside, kept_float, write_bias, write_filter
from dsopt.backends.cpu.ops.activation import activate
from dsopt.backends.cpu.registry import converter


@converter("aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default")
def convert_conv(
    cx: Emitter,
    x: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Value:
    """Write a convolution with numeric padding."""
    spatial = cx.rank(weight) - 2
    pads = spread(padding, spatial)
    return _convolve(cx, x, weight, bias, spread(stride, spatial), [*pads, *pads], spread(dilation, spatial), groups)


@converter("aten.conv1d.padding", "aten.conv2d.padding", "aten.conv3d.padding")
def convert_named_padding(
    cx: Emitter,
    x: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None = None,
    stride: Any = 1,
    padding: str = "valid",
    dilation: Any = 1,
    groups: int = 1,
) -> Value:
    """Write a convolution with padding "same" (the odd element at the end, as torch has it) or "valid"."""
    kernel = _kernel(cx, weight)
    dilations = spread(dilation, len(kernel))
    totals = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilations, kernel, strict=True)]
    pads = [total // 2 for total in totals] + [total - total // 2 for total in totals]
    return _convolve(cx, x, weight, bias, spread(stride, len(kernel)), pads, dilations, groups)


@converter("aten.conv_transpose1d.default", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input")
def convert_conv_transpose(
    cx: Emitter,
    x: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Value:
    """Write a transposed convolution."""
    return _deconvolve(cx, x, weight, bias, stride, padding, output_padding, dilation, groups)


@converter("aten.convolution.default", "aten._convolution.default")
def convert_convolution(
    cx: Emitter,
    x: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    *backend_flags: bool,
) -> Value:
    """Write the general form that the others lower to."""
    if transposed:
        return _deconvolve(cx, x, weight, bias, stride, padding, output_padding, dilation, groups)
    return convert_conv(cx, x, weight, bias, stride, padding, dilation, groups)


@converter("dsopt.conv_act.default")
def convert_conv_act(
    cx: Emitter,
    x: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    activation: str,
    params: Sequence[float],
) -> Value:
    """Write a convolution and its activation; ONNX Runtime fuses the two itself, which keeps the model portable."""
    y = convert_convolution(cx, x, weight, bias, stride, padding, dilation, transposed, output_padding, groups)
    return activate(cx, y, activation, params)


def _convolve(
    cx: Emitter,
    x: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None,
    strides: list[int],
    pads: list[int],
    dilations: list[int],
    groups: int,
) -> Value:
    return _batched(
        cx, x, weight, bias, "Conv", strides=strides, pads=pads, dilations=dilations, group=groups,
        kernel_shape=_kernel(cx, weight),
    )  # fmt: skip


def _deconvolve(
    cx: Emitter,
    x: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None,
    stride: Any,
    padding: Any,
    output_padding: Any,
    dilation: Any,
    groups: int,
) -> Value:
    kernel = _kernel(cx, weight)
    pads = spread(padding, len(kernel))
    return _batched(
        cx, x, weight, bias, "ConvTranspose", strides=spread(stride, len(kernel)), pads=[*pads, *pads],
        output_padding=spread(output_padding, len(kernel)), dilations=spread(dilation, len(kernel)), group=groups,
        kernel_shape=kernel,
    )  # fmt: skip


def _batched(cx: Emitter, x: fx.Node, weight: fx.Node, bias: fx.Node | None, op_type: str, **attributes: Any) -> Value:
    """Append the node; torch also takes an input without a batch axis, ONNX does not."""
    value, unbatched = cx.value(x), cx.rank(x) == cx.rank(weight) - 1
    value = cx.unsqueeze(value, 0) if unbatched else value
    added, is_integer = write_bias(cx, x, weight, bias)
    filters, is_exact = write_filter(cx, weight, is_inside(cx, x))
    y = cx.op(op_type, value, filters, added, **attributes)
    y = y if is_exact and (is_integer or added is None) else kept_float(cx, x, y)
    return cx.squeeze(y, 0) if unbatched else y


def _kernel(cx: Emitter, weight: fx.Node) -> list[int]:
    return [cx.fixed(size, "the size of the kernel") for size in cx.shape(weight)[2:]]


def spread(value: Any, count: int) -> list[int]:
    """Return one number for each spatial dim from a number or a list of one or `count` numbers."""
    numbers = list(value) if isinstance(value, (list, tuple)) else [value]
    return numbers * count if len(numbers) == 1 else numbers
