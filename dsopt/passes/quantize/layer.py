"""Convolutions and linear layers in one form: a matrix for each group, with which rows of inputs are multiplied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from dsopt.ir import Program
from dsopt.ir.convolution import Convolution, convolution, is_convolution

_ATEN = torch.ops.aten
_LINEAR = {_ATEN.linear.default, torch.ops.dsopt.linear_act.default}
_FAKE = torch.ops.dsopt.fake_quantize.default


@dataclass(frozen=True)
class Layer:
    """One convolution or linear layer. weight: the argument, a stored tensor or one that is rounded.  conv: None for linear.

    Sizes: G groups, N outputs and I inputs of a group, K = I times the elements of a kernel, P rows of inputs.
    """

    node: fx.Node
    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    conv: Convolution | None

    @property
    def groups(self) -> int:
        """Return G."""
        return 1 if self.conv is None else self.conv.groups

    @property
    def channel_axis(self) -> int:
        """Return the axis of the result that the channels are on."""
        return -1 if self.conv is None else 1

    @property
    def is_rounded(self) -> bool:
        """Tell whether the weight is rounded."""
        return self.weight.target is _FAKE

    def matrices(self, weight: Tensor) -> Tensor:
        """Return a weight as (G, N, I, *kernel)."""
        split = weight.reshape(self.groups, -1, *weight.shape[1:])
        return split.transpose(1, 2) if self._is_transposed else split

    def stored(self, matrices: Tensor) -> Tensor:
        """Undo `matrices`."""
        split = matrices.transpose(1, 2) if self._is_transposed else matrices
        return split.flatten(0, 1)

    def scale_outputs(self, weight: Tensor, factor: Tensor) -> Tensor:
        """Multiply what each output channel is made with. factor: (G * N,)"""
        parts = self.matrices(weight)
        return self.stored(parts * factor.reshape(parts.shape[0], parts.shape[1], *[1] * (parts.dim() - 2)))

    def scale_inputs(self, weight: Tensor, factor: Tensor) -> Tensor:
        """Multiply what each input channel is multiplied with. factor: (G * I,)"""
        parts = self.matrices(weight)
        return self.stored(parts * factor.reshape(parts.shape[0], 1, parts.shape[2], *[1] * (parts.dim() - 3)))

    def output_ranges(self, weight: Tensor) -> Tensor:
        """Return the largest magnitude of a weight for each output channel: (G * N,)."""
        return self.matrices(weight).abs().flatten(2).amax(2).reshape(-1)

    def input_ranges(self, weight: Tensor) -> Tensor:
        """Return the largest magnitude of a weight for each input channel: (G * I,)."""
        return self.matrices(weight).abs().transpose(1, 2).flatten(2).amax(2).reshape(-1)

    # ---- as a product ----

    def product_matrices(self, weight: Tensor) -> Tensor:
        """Return a weight as (G, N, K), to be multiplied with `rows`; a transposed convolution sees its kernel flipped."""
        parts = self.matrices(weight)
        return (parts.flip(tuple(range(3, parts.dim()))) if self._is_transposed else parts).flatten(2)

    def from_product(self, matrices: Tensor, like: Tensor) -> Tensor:
        """Undo `product_matrices`. like: the weight."""
        parts = matrices.reshape(self.matrices(like).shape)
        return self.stored(parts.flip(tuple(range(3, parts.dim()))) if self._is_transposed else parts)

    def rows(self, x: Tensor) -> Tensor:
        """Return the inputs of a batch as (P, G, K), a row for each position of each sample's result."""
        if self.conv is None:
            return x.reshape(-1, 1, x.shape[-1])
        parts = self._patches(x)
        samples, _, positions = parts.shape
        return parts.reshape(samples, self.groups, -1, positions).permute(0, 3, 1, 2).flatten(0, 1)

    def results(self, y: Tensor) -> Tensor:
        """Return the layer's results as (P, G, N), in the order of `rows`."""
        if self.conv is None:
            return y.reshape(-1, 1, y.shape[-1])
        return y.flatten(2).transpose(1, 2).reshape(y.shape[0] * y[0, 0].numel(), self.groups, -1)

    def _patches(self, x: Tensor) -> Tensor:
        conv = self.conv
        assert conv is not None
        kernel = list(conv.weight.meta["val"].shape[2:])
        stride, padding, dilation = conv.stride, [(pad, pad) for pad in conv.padding], conv.dilation
        if conv.transposed:
            x = _spread(x, stride)
            reach = [dil * (size - 1) for dil, size in zip(dilation, kernel, strict=True)]
            padding = [
                (far - pad, far - pad + more)
                for far, pad, more in zip(reach, conv.padding, conv.output_padding, strict=True)
            ]
            stride = [1] * len(stride)
        x = F.pad(x, [each for pair in reversed(padding) for each in pair])
        if len(kernel) == 1:
            return F.unfold(x.unsqueeze(2), (1, *kernel), (1, *dilation), 0, (1, *stride))
        return F.unfold(x, tuple(kernel), tuple(dilation), 0, tuple(stride))

    @property
    def _is_transposed(self) -> bool:
        return self.conv is not None and self.conv.transposed


def _spread(x: Tensor, stride: list[int]) -> Tensor:
    """Put zeros between the elements of an input, as a transposed convolution with a stride sees it."""
    for axis, step in enumerate(stride, start=2):
        if step > 1:
            shape = [*x.shape[:axis], (x.shape[axis] - 1) * step + 1, *x.shape[axis + 1 :]]
            wide = x.new_zeros(shape)
            wide[(slice(None),) * axis + (slice(None, None, step),)] = x
            x = wide
    return x


def layer_of(program: Program, node: fx.Node) -> Layer | None:
    """Read a convolution or linear layer of floats; None for any other node."""
    if node.op != "call_function" or not isinstance(node.args[1] if len(node.args) > 1 else None, fx.Node):
        return None
    if is_convolution(node):
        conv = convolution(node)
        if conv.x.meta["val"].dim() != conv.weight.meta["val"].dim():
            return None  # a sample without a batch
        return Layer(node, conv.x, conv.weight, conv.bias, conv)
    if node.target in _LINEAR and not node.kwargs:
        x, weight, bias = (*node.args[:3], None)[:3]
        if weight.meta["val"].dim() == 2:  # type: ignore[union-attr]
            return Layer(node, x, weight, bias, None)  # type: ignore[arg-type]
    return None


def stored_weight(program: Program, layer: Layer) -> fx.Node:
    """Return the placeholder of a layer's weight, behind its rounding if it has one."""
    source: Any = layer.weight.args[0] if layer.weight.target is _FAKE else layer.weight
    assert isinstance(source, fx.Node)
    return source
