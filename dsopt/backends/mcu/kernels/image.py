"""The arguments of q_conv and q_conv_add, read and checked for micro-kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dsopt.backends.mcu.kernels.store import Addition, Store
from dsopt.backends.mcu.kernels.stream import Array, Weights, read_weights
from dsopt.backends.tir.program import Buffer
from dsopt.backends.tir.registry import Context, UnsuitedError
from dsopt.ops.integer.linear import CONVOLUTION_ARGUMENTS

_MOST_GROUPS = 4
"""Up to so many, products with zeros are faster than loops without a kernel."""


@dataclass(frozen=True)
class Image:
    """The geometry of a convolution in two dims; one in one dim has a height of 1. Sizes are (height, width).

    batch: how many images lie one behind the other; all other numbers are those of one.
    """

    C: int
    N: int
    size: tuple[int, int]
    out: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    batch: int = 1

    @property
    def input_elements(self) -> int:
        """Return the values of an image."""
        return self.C * self.size[0] * self.size[1]

    @property
    def as_one(self) -> Image:
        """Return the images as one that is a row: for those of which each pixel is made of one pixel."""
        assert self.is_pointwise
        row = (1, self.batch * self.pixels)
        return replace(self, size=row, out=row, batch=1)

    @property
    def pixels(self) -> int:
        """Return the pixels of a result."""
        return self.out[0] * self.out[1]

    @property
    def is_pointwise(self) -> bool:
        """Return whether each pixel of the result is made of one pixel, in the same order."""
        return self.kernel == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0)

    def leaves(self, dim: int) -> bool:
        """Return whether a window may lie partly outside of the image in a dim."""
        end = (self.out[dim] - 1) * self.stride[dim] - self.padding[dim] + (self.kernel[dim] - 1) * self.dilation[dim]
        return self.padding[dim] > 0 or end >= self.size[dim]


@dataclass(frozen=True)
class Convolution:
    """A convolution of int8 images. layer: values (N, C / groups, kh, kw).  residual: added as `addition` says, perhaps nothing."""

    image: Image
    layer: Weights
    groups: int
    x_zero: int
    store: Store
    residual: Buffer | None = None
    addition: Addition | None = None

    @property
    def is_depthwise(self) -> bool:
        """Return whether each channel is made of one channel: of each, one or several."""
        return self.groups == self.image.C and self.image.N % self.image.C == 0


def read_sum(context: Context, x: Buffer, arguments: Sequence[Any]) -> Convolution:
    """Read the arguments of q_conv_add behind its image. Raises UnsuitedError for what no kernel here takes."""
    residual, residual_zero, factor, residual_factor, shift, *y = arguments[CONVOLUTION_ARGUMENTS - 1 :]
    y_zero = arguments[CONVOLUTION_ARGUMENTS - 6]
    addition = Addition.of(y_zero, residual_zero, factor, residual_factor, shift, Store(*y))
    found = read_convolution(context, x, *arguments[: CONVOLUTION_ARGUMENTS - 1])
    if found.groups != 1:
        raise UnsuitedError(f"it has {found.groups} groups and a residual")
    return replace(found, residual=residual, addition=addition)


def read_convolution(
    context: Context, x: Buffer, weight: Buffer, bias: Buffer | None, multiplier: Buffer, shift: Buffer, factors: Buffer | None,
    group: int, weight_shape: list[int], weight_bits: int, stride: list[int], padding: list[int], dilation: list[int],
    transposed: bool, output_padding: list[int], groups: int, x_zero: int, y_zero: int, low: int, high: int, bits: int, wide: bool,
) -> Convolution:  # fmt: skip
    """Read the arguments of q_conv. Raises UnsuitedError for what no kernel here takes."""
    if transposed:
        raise UnsuitedError("it is transposed")
    if x.dtype != "int8" or bits != 8:
        raise UnsuitedError("its values have 16 bits")
    layer = read_weights(context, weight, weight_shape, weight_bits, factors, bias, multiplier, shift, x_zero, wide)
    C, N = x.shape[1], context.shape[1]
    sizes, out, kernel, steps = map(_two, (x.shape[2:], context.shape[2:], weight_shape[2:], stride))
    image = Image(C, N, sizes, out, kernel, steps, _two(padding[: len(stride)], 0), _two(dilation), x.shape[0])
    layer = replace(layer, values=layer.values.reshape(N, -1, *image.kernel))
    found = Convolution(image, layer, groups, x_zero, Store(y_zero, low, high, layer.lift))
    if groups == 1 or found.is_depthwise:
        return found
    if groups > _MOST_GROUPS:
        raise UnsuitedError(f"it has {groups} groups of {C // groups} channels")
    return replace(found, layer=replace(layer, values=_joined(layer.values, groups)), groups=1)


def _joined(values: Array, groups: int) -> Array:
    """Return the weights over all channels, with zeros for those of other groups."""
    N, size = values.shape[:2]
    joined = np.zeros((N, size * groups, *values.shape[2:]), values.dtype)
    for group, rows in enumerate(np.split(np.arange(N), groups)):
        joined[rows, group * size : (group + 1) * size] = values[rows]
    return joined


def _two(values: Sequence[int], filler: int = 1) -> tuple[int, int]:
    """Return a height and a width for one or two numbers."""
    height, width = (filler, *values) if len(values) == 1 else values
    return height, width
