"""fuse-activation: an activation becomes part of the convolution, linear layer or addition before it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from dsopt.ir import Program, Rewriter
from dsopt.ir.convolution import convolution, is_convolution
from dsopt.passes.base import Pass, PassContext

_ATEN = torch.ops.aten
_DSOPT = torch.ops.dsopt

Activation = tuple[str, list[float]]


def _bounds(low: Any, high: Any) -> Activation | None:
    numbers = [-math.inf if low is None else low, math.inf if high is None else high]
    if not all(isinstance(number, (int, float)) for number in numbers):
        return None
    return (
        ("relu", [])
        if numbers == [0, math.inf]
        else ("relu6", [])
        if numbers == [0, 6]
        else ("clamp", [float(n) for n in numbers])
    )


_ACTIVATIONS: dict[Any, Callable[[tuple[Any, ...], dict[str, Any]], Activation | None]] = {
    _ATEN.relu.default: lambda args, kwargs: ("relu", []),
    _ATEN.relu6.default: lambda args, kwargs: ("relu6", []),
    _ATEN.hardtanh.default: lambda args, kwargs: _bounds(*[*args[1:], *[-1, 1][len(args) - 1 :]]),
    _ATEN.clamp.default: lambda args, kwargs: (
        _bounds(*[*args[1:], None, None][:2]) if not kwargs else _bounds(kwargs.get("min"), kwargs.get("max"))
    ),
    _ATEN.clamp_min.default: lambda args, kwargs: _bounds(args[1], None),
    _ATEN.clamp_max.default: lambda args, kwargs: _bounds(None, args[1]),
    _ATEN.leaky_relu.default: lambda args, kwargs: ("leaky_relu", [float(args[1]) if len(args) > 1 else 0.01]),
    _ATEN.elu.default: lambda args, kwargs: (
        ("elu", [float(args[1]) if len(args) > 1 else 1.0]) if len(args) < 3 and not kwargs else None
    ),
    _ATEN.hardswish.default: lambda args, kwargs: ("hardswish", []),
    _ATEN.hardsigmoid.default: lambda args, kwargs: ("hardsigmoid", []),
    _ATEN.sigmoid.default: lambda args, kwargs: ("sigmoid", []),
    _ATEN.tanh.default: lambda args, kwargs: ("tanh", []),
    _ATEN.silu.default: lambda args, kwargs: ("silu", []),
    _ATEN.gelu.default: lambda args, kwargs: (
        "gelu_tanh" if kwargs.get("approximate", [*args, "none"][1]) == "tanh" else "gelu",
        [],
    ),
}
"""Operator -> activation of dsopt.ops and its parameters, None where an argument has no counterpart."""


@dataclass(frozen=True)
class FuseActivation(Pass):
    """relu(conv2d(x, w, b)) -> dsopt::conv_act(x, w, b, ..., "relu"), and the same for linear and add."""

    name: ClassVar[str] = "fuse-activation"

    def run(self, program: Program, rewriter: Rewriter, context: PassContext) -> None:
        """Fuse every activation whose producer feeds nothing else."""
        for node in list(program.graph.nodes):
            if node.op != "call_function" or node.target not in _ACTIVATIONS:
                continue
            producer = node.args[0]
            if not isinstance(producer, fx.Node) or not _is_fusable(producer):
                continue
            activation = _ACTIVATIONS[node.target](node.args, node.kwargs)
            if activation is None:
                rewriter.skip(node, "its arguments have no fused form")
            elif len(producer.users) > 1:
                rewriter.skip(node, f"%{producer.name} is also used before the activation")
            else:
                fused = _fuse(rewriter, producer, node, activation)
                fused.meta["layer"], fused.meta["source"] = program.layer(producer), program.source(producer)
                rewriter.replace(node, fused)


def _is_fusable(producer: fx.Node) -> bool:
    if producer.op != "call_function":
        return False
    if producer.target is _ATEN.add.Tensor:
        both = all(isinstance(item, fx.Node) for item in producer.args[:2]) and len(producer.args) == 2
        return both and bool(producer.kwargs.get("alpha", 1) == 1) and bool(producer.meta["val"].is_floating_point())
    if producer.target is _ATEN.linear.default:
        return not producer.kwargs
    return is_convolution(producer) and producer.target not in (_ATEN.convolution.default, _DSOPT.conv_act.default)


def _fuse(rewriter: Rewriter, producer: fx.Node, like: fx.Node, activation: Activation) -> fx.Node:
    name, params = activation
    if producer.target is _ATEN.add.Tensor:
        return rewriter.call(_DSOPT.add_act.default, *producer.args, name, params, like=like)
    x, weight, *rest = producer.args
    if producer.target is _ATEN.linear.default:
        return rewriter.call(_DSOPT.linear_act.default, x, weight, rest[0] if rest else None, name, params, like=like)
    conv = convolution(producer)
    return rewriter.call(_DSOPT.conv_act.default, x, weight, conv.bias, *conv.geometry, name, params, like=like)
