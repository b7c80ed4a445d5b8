"""Write a converted program as a ModelProto, with external data where the weights are large, and check it with onnx."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from dsopt import __version__
from dsopt.backends.cpu.builder import MICROSOFT, Body, GraphBuilder, Node
from dsopt.backends.cpu.convert import Converted, Port
from dsopt.backends.cpu.functions import DSOPT, Function
from dsopt.backends.cpu.kernels import INT4, UINT4
from dsopt.errors import VerifyError

OPSET = 21
"""The version of the standard operators; int4 and block-wise quantisation begin with it."""

IR_VERSION = 10
"""The file format version that belongs to opset 21; ONNX Runtime reads it from 1.18 on."""

EXTERNAL_DATA_ABOVE_BYTES = 1_500_000_000
"""A protobuf cannot hold 2 GB: weights above this go to a file beside the model."""

_ALIGNMENT_BYTES = 4096  # so that the weights can be mapped page by page
_SKELETON_LIMIT = 256  # elements: sizes, axes and scalars are far below

ONNX_DTYPES: dict[torch.dtype, int] = {
    torch.float32: TensorProto.FLOAT,
    torch.float64: TensorProto.DOUBLE,
    torch.float16: TensorProto.FLOAT16,
    torch.bool: TensorProto.BOOL,
    torch.int64: TensorProto.INT64,
    torch.int32: TensorProto.INT32,
    torch.int16: TensorProto.INT16,
    torch.int8: TensorProto.INT8,
    torch.uint8: TensorProto.UINT8,
    INT4: TensorProto.INT4,
    UINT4: TensorProto.UINT4,
}


def model_files(converted: Converted, name: str) -> dict[str, bytes]:
    """Return "model.onnx", and "model.onnx.data" where the weights are large. Raises VerifyError if onnx finds the model wrong."""
    graph = converted.emitter
    used = {name for node in graph.nodes for each in node.walk() for name in each.inputs}
    stored = {key: tensor for key, tensor in graph.initializers.items() if key in used}
    check(converted, stored, name)
    total = sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    if total <= EXTERNAL_DATA_ABOVE_BYTES:
        return {"model.onnx": _serialize(_model(converted, name, [_stored(graph, key) for key in stored]))}
    protos: list[TensorProto] = []
    chunks: list[bytes] = []
    offset = 0
    for key in stored:
        proto = _stored(graph, key)
        if len(proto.raw_data) > 1024:
            padding = -offset % _ALIGNMENT_BYTES
            chunks += [bytes(padding), proto.raw_data]
            offset += padding
            length = len(proto.raw_data)
            proto.ClearField("raw_data")
            proto.data_location = TensorProto.EXTERNAL
            for label, text in (("location", "model.onnx.data"), ("offset", str(offset)), ("length", str(length))):
                proto.external_data.add(key=label, value=text)
            offset += length
        protos.append(proto)
    return {"model.onnx": _serialize(_model(converted, name, protos)), "model.onnx.data": b"".join(chunks)}


def check(converted: Converted, stored: dict[str, Tensor], name: str) -> None:
    """Check structure and infer every shape with onnx, large weights standing as inputs so that their bytes are not copied.

    Raises VerifyError: a converter is wrong.
    """
    graph = converted.emitter
    small = {key: tensor for key, tensor in stored.items() if tensor.numel() <= _SKELETON_LIMIT}
    model = _model(converted, name, [_stored(graph, key) for key in small])
    for key, tensor in stored.items():
        if key not in small:
            model.graph.input.append(_value_info(Port(key, graph.stored_dtype(key), tuple(tensor.shape))))
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as problem:
        raise VerifyError(
            "DS0501",
            "the ONNX model that was written is not valid",
            why=str(problem),
            fix="report this as a bug of dsopt",
        ) from problem


def _model(converted: Converted, name: str, tensors: Iterable[TensorProto]) -> onnx.ModelProto:
    nodes = converted.emitter.nodes
    graph = helper.make_graph(
        [_node(each) for each in nodes],
        name,
        [_value_info(port) for port in converted.inputs],
        [_value_info(port) for port in converted.outputs],
        list(tensors),
        value_info=[_value_info(port) for port in converted.inner],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    domains = {each.domain for node in nodes for each in node.walk()}
    opsets += [helper.make_opsetid(domain, 1) for domain in (MICROSOFT, DSOPT) if domain in domains]
    called = {each.op_type for node in nodes for each in node.walk() if each.domain == DSOPT}
    functions = [_function(each) for name, each in sorted(converted.emitter.functions.items()) if name in called]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, functions=functions)
    model.producer_name, model.producer_version = "dsopt", __version__
    return model


def _function(function: Function) -> onnx.FunctionProto:
    """Return a function; it cannot store tensors, so they are the results of nodes."""
    body = function.body
    constants = [
        helper.make_node("Constant", [], [name], name=name, value=_stored(body, name)) for name in body.initializers
    ]
    return helper.make_function(
        DSOPT, function.name, function.inputs, function.outputs, [*constants, *map(_node, body.nodes)],
        [helper.make_opsetid("", OPSET)],
    )  # fmt: skip


def _serialize(model: onnx.ModelProto) -> bytes:
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _node(node: Node) -> onnx.NodeProto:
    attributes = {key: _attribute(value) for key, value in node.attributes.items()}
    return helper.make_node(
        node.op_type, node.inputs, node.outputs, name=node.name, domain=node.domain or None, **attributes
    )


def _attribute(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return ONNX_DTYPES[value]
    if isinstance(value, Tensor):
        return _tensor("", value)
    if isinstance(value, Body):
        ports = ([helper.make_tensor_value_info(each.name, ONNX_DTYPES[each.dtype], None) for each in values]
                 for values in (value.inputs, value.outputs))  # fmt: skip
        return helper.make_graph([_node(each) for each in value.nodes], "body", *ports)
    return value


def _value_info(port: Port) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(port.name, ONNX_DTYPES[port.dtype], list(port.shape))


def _stored(graph: GraphBuilder, name: str) -> TensorProto:
    return _tensor(name, graph.initializers[name], graph.narrow.get(name))


def _tensor(name: str, tensor: Tensor, narrow: torch.dtype | None = None) -> TensorProto:
    proto = TensorProto(name=name, data_type=ONNX_DTYPES[narrow or tensor.dtype], dims=tuple(tensor.shape))
    elements = tensor.contiguous() if narrow is None else _packed(tensor)
    proto.raw_data = elements.numpy().tobytes()  # little-endian, as every host that torch runs on
    return proto


def _packed(tensor: Tensor) -> Tensor:
    """Return 4-bit elements two to a byte, the first one in the low half; the last byte may be half used."""
    flat = tensor.reshape(-1).to(torch.uint8) & 15
    flat = torch.nn.functional.pad(flat, (0, flat.numel() % 2))
    return flat[0::2] | (flat[1::2] << 4)
