"""The arguments of a convolution in one form, whichever operator it was exported as."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

_ATEN = torch.ops.aten

_DIRECT = {_ATEN.conv1d.default, _ATEN.conv2d.default, _ATEN.conv3d.default}
_TRANSPOSED = {_ATEN.conv_transpose1d.default, _ATEN.conv_transpose2d.input, _ATEN.conv_transpose3d.input}
_ONE_OPERATOR = {_ATEN.convolution.default, torch.ops.dsopt.conv_act.default}


@dataclass(frozen=True)
class Convolution:
    """stride, padding, dilation, output_padding: one number for each spatial dim."""

    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int

    @property
    def channel_axis(self) -> int:
        """Return the axis of the weight whose elements belong to one output channel each (of each group, if transposed)."""
        return 1 if self.transposed else 0

    @property
    def geometry(self) -> tuple[list[int], list[int], list[int], bool, list[int], int]:
        """Return what follows x, weight and bias in the arguments of aten.convolution."""
        return self.stride, self.padding, self.dilation, self.transposed, self.output_padding, self.groups


def is_convolution(node: object) -> bool:
    """Tell whether `convolution` reads a node; those with padding="same" it does not, `canonicalize` writes them with numbers."""
    if not isinstance(node, fx.Node) or node.op != "call_function" or node.kwargs:
        return False
    return node.target in _DIRECT or node.target in _TRANSPOSED or node.target in _ONE_OPERATOR


def convolution(node: fx.Node) -> Convolution:
    """Return the arguments of a convolution with defaults filled in."""
    x, weight, *rest = node.args
    assert isinstance(x, fx.Node)
    assert isinstance(weight, fx.Node)
    given: list[Any] = [*rest, *_defaults(node.target)[len(rest) :]]
    bias, numbers = given[0], given[1:]
    if node.target in _ONE_OPERATOR:
        stride, padding, dilation, transposed, output_padding, groups = numbers[:6]
    elif node.target in _TRANSPOSED:
        stride, padding, output_padding, groups, dilation = numbers
        transposed = True
    else:
        stride, padding, dilation, groups = numbers
        transposed, output_padding = False, 0
    dims = int(weight.meta["val"].dim()) - 2
    spread = [_each(item, dims) for item in (stride, padding, dilation, output_padding)]
    return Convolution(
        x, weight, bias, spread[0], spread[1], spread[2], bool(transposed), spread[3], int(groups)
    )  # fmt: skip


def _defaults(target: Any) -> list[Any]:
    if target in _ONE_OPERATOR:
        return [None, 1, 0, 1, False, 0, 1]
    return [None, 1, 0, 0, 1, 1] if target in _TRANSPOSED else [None, 1, 0, 1, 1]


def _each(value: Any, dims: int) -> list[int]:
    if isinstance(value, int):
        return [value] * dims
    return list(value) * (dims if len(value) == 1 else 1)
