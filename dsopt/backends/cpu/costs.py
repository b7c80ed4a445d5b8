"""What each layer of an ONNX model is: tensor name, program node, layer, operator, shape, multiply-adds."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from dsopt.backends.cpu.convert import Converted
from dsopt.backends.cpu.registry import operator_key
from dsopt.ir import Program
from dsopt.ir.torch_private import hint_of


def layer_records(program: Program, converted: Converted) -> list[dict[str, Any]]:
    """Return one record for each converted node with one result, in order. Multiply-adds are those of the captured example's sizes."""
    records = []
    for node in program.graph.nodes:
        if node.name in converted.values:
            records.append(
                {
                    "name": converted.values[node.name],
                    "node": node.name,
                    "layer": program.layer(node),
                    "op": operator_key(node.target),
                    "shape": list(program.shape(node)),
                    "multiply_adds": multiply_adds(node),
                }
            )
    return records


def multiply_adds(node: fx.Node) -> int:
    """Return the multiply-adds of a convolution, matrix product or attention; 0 for all else."""
    base = operator_key(node.target).split(".")[1]
    if base.startswith("conv"):
        transposed = "transpose" in base or (base in ("convolution", "conv_act") and bool(node.args[6]))
        weight, data = _sizes(node.args[1]), _sizes(node.args[0] if transposed else node)
        spatial = len(weight) - 2
        positions = prod(data[: len(data) - spatial - 1]) * prod(data[len(data) - spatial :])
        return positions * prod(weight)
    if base in ("linear", "linear_act"):
        return prod(_sizes(node.args[0])) * _sizes(node.args[1])[0]
    if base in ("matmul", "mm", "bmm", "mv", "dot"):
        return prod(_sizes(node)) * _sizes(node.args[0])[-1]
    if base in ("addmm", "baddbmm"):
        return prod(_sizes(node)) * _sizes(node.args[1])[-1]
    if base == "scaled_dot_product_attention":
        query, key = _sizes(node.args[0]), _sizes(node.args[1])
        return prod(query) * key[-2] + prod(_sizes(node)) * key[-2]
    return 0


def _sizes(arg: Any) -> list[int]:
    value = arg.meta["val"]
    assert isinstance(value, (Tensor, torch.Tensor))
    return [hint_of(size) for size in value.shape]
