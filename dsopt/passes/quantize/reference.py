"""Other weights and biases for a prepared program, which keeps those it had, so that each pass compares with the same float program.

Values that were replaced are stored beside the new ones, read by no node, until quantize-convert drops what nothing reads.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from dsopt.ir import Program, Rewriter
from dsopt.passes.quantize.layer import Layer, stored_weight

_FAKE = torch.ops.dsopt.fake_quantize.default


def float_value(program: Program, node: fx.Node) -> Tensor | None:
    """Return what a stored value is in the float program; None if it is none."""
    name = program.weight_name(node)
    value = program.weights.get(_kept(name)) if name is not None else None
    value = program.weight(node) if value is None else value
    return None if value is None else value.detach()


def unstored(program: Program, layer: Layer) -> str:
    """Return why a layer's weight and bias cannot be given other values, "" if they can."""
    if program.weight(stored_weight(program, layer)) is None:
        return "its weight is computed, not stored"
    if layer.bias is not None and program.weight(layer.bias) is None:
        return "its bias is computed, not stored"
    return ""


def has_rounded_weight(program: Program, node: fx.Node) -> bool:
    """Tell whether a node reads a weight that is rounded; an operand on the grid of an activation is none."""
    sources = [each for each in node.all_input_nodes if each.target is _FAKE and each.args[5] == -each.args[6]]  # type: ignore[operator]
    return any(program.weight(each.args[0]) is not None for each in sources)


def store_weight(program: Program, rewriter: Rewriter, layer: Layer, weight: Tensor) -> None:
    """Give a layer another weight."""
    _replace(program, rewriter, stored_weight(program, layer), weight)


def store_bias(program: Program, rewriter: Rewriter, layer: Layer, bias: Tensor) -> None:
    """Give a layer another bias, or a first one; a bias that other layers read too stays theirs."""
    if layer.bias is not None and len(layer.bias.users) == 1:
        _replace(program, rewriter, layer.bias, bias)
        return
    name = None if layer.bias is None else program.weight_name(layer.bias)
    before = torch.zeros_like(bias) if layer.bias is None else float_value(program, layer.bias)
    assert before is not None
    base = str(program.weight_name(stored_weight(program, layer))).removesuffix("weight")
    node = rewriter.add_weight(name or f"{base}bias", before)
    arguments = [*layer.node.args, *[None] * (3 - len(layer.node.args))]
    arguments[2] = node
    layer.node.args = tuple(arguments)
    rewriter.retype_from(layer.node)
    _replace(program, rewriter, node, bias)


def _replace(program: Program, rewriter: Rewriter, node: fx.Node, value: Tensor) -> None:
    name, before = program.weight_name(node), program.weight(node)
    assert name is not None
    assert before is not None
    if _kept(name) not in program.weights:
        rewriter.add_weight(_kept(name), before.detach(), "constant")
    rewriter.set_parameters({name: value})


def _kept(name: str) -> str:
    return f"{name}.in_float"
