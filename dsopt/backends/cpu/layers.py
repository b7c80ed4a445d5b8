"""The manifest's "layers": which ONNX tensor each program node became, for tracing, profiling and reports."""

from __future__ import annotations

from typing import Any

from torch import fx

from dsopt.backends.cpu.convert import Converted
from dsopt.backends.cpu.functions import DSOPT
from dsopt.backends.cpu.registry import operator_key
from dsopt.ir import Program
from dsopt.ir.multiply_adds import multiply_adds


def layer_records(program: Program, converted: Converted) -> list[dict[str, Any]]:
    """Return one record for each converted tensor, in order.

    name, onnx_node: tensor and node in the model.  node, layer, op: in the program.  multiply_adds: at the example's sizes.
    function: the function of the model that the node calls, if it calls one.
    """
    records = [_record(program, node, converted) for node in program.graph.nodes if node.name in converted.values]
    called = {node.name: node.op_type for node in converted.emitter.nodes if node.domain == DSOPT}
    for record in records:
        if record["onnx_node"] in called:
            record["function"] = called[record["onnx_node"]]
    return records


def _record(program: Program, node: fx.Node, converted: Converted) -> dict[str, Any]:
    maker = _maker(node)
    return {
        "name": converted.values[node.name],
        "onnx_node": converted.producers[converted.values[node.name]],
        "node": node.name,
        "layer": program.layer(maker),
        "op": operator_key(maker.target),
        "shape": list(program.shape(node)),
        "multiply_adds": multiply_adds(maker) if maker is node or node.args[1] == 0 else 0,
    }


def _maker(node: fx.Node) -> fx.Node:
    """Return the node that computes a tensor: for one of several results, the node that has them all."""
    source = node.args[0] if operator_key(node.target) == "operator.getitem" else node
    assert isinstance(source, fx.Node)
    return source
