"""Write a converted program as a ModelProto, with external data where the weights are large, and check it with onnx."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
from dsopt.backends.cpu.placing import lay
from dsopt.errors import VerifyError
from dsopt.runtime.onnx import DATA, MODEL

OPSET = 21
"""The version of the standard operators; int4 and block-wise quantisation begin with it."""

IR_VERSION = 10
"""The file format version that belongs to opset 21; ONNX Runtime reads it from 1.18 on."""

EXTERNAL_DATA_ABOVE_BYTES = 1_500_000_000
"""A protobuf cannot hold 2 GB: weights above this go to a file beside the model."""

_ALIGNMENT_BYTES = 4096  # so that the weights can be mapped page by page
_INLINE_BYTES = 1024  # tensors above may lie elsewhere than in the message that describes them
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


@dataclass(frozen=True)
class Place:
    """Where the elements of a stored tensor lie: bytes of a file of the artifact."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class Graph:
    """What one file says: nodes between inputs and outputs, types of what lies between, and the tensors that `builder` stores."""

    builder: GraphBuilder
    nodes: Sequence[Node]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    inner: tuple[Port, ...]

    @staticmethod
    def of(converted: Converted) -> Graph:
        """Return a whole program."""
        return Graph(converted.emitter, converted.emitter.nodes, converted.inputs, converted.outputs, converted.inner)

    @property
    def stored(self) -> dict[str, Tensor]:
        """Return the stored tensors that a node reads."""
        used = {name for node in self.nodes for each in node.walk() for name in each.inputs}
        return {key: tensor for key, tensor in self.builder.initializers.items() if key in used}


def model_files(converted: Converted, name: str) -> dict[str, bytes]:
    """Return "model.onnx", and "model.onnx.data" where the weights are large. Raises VerifyError if onnx finds the model wrong."""
    graph = Graph.of(converted)
    stored = graph.stored
    check(graph, name)
    if _byte_count(stored) > EXTERNAL_DATA_ABOVE_BYTES:
        return _files_with_data(graph, name)[0]
    return {MODEL: _serialize(_model(graph, name, [_stored(graph.builder, key) for key in stored]))}


def placed_files(converted: Converted, name: str) -> tuple[dict[str, bytes], dict[str, Place]]:
    """Return the files of `model_files`, and where the tensors lie to which segments refer. Raises VerifyError."""
    graph = Graph.of(converted)
    stored = graph.stored
    check(graph, name)
    if _byte_count(stored) > EXTERNAL_DATA_ABOVE_BYTES:
        return _files_with_data(graph, name)
    protos = [_stored(graph.builder, key) for key in stored]
    large = [proto for proto in protos if len(proto.raw_data) > _INLINE_BYTES]
    content, offsets = lay(_model(graph, name, [each for each in protos if each not in large]), large)
    return {MODEL: content}, {each.name: Place(MODEL, offsets[each.name], len(each.raw_data)) for each in large}


def segment_file(graph: Graph, name: str, places: Mapping[str, Place]) -> bytes:
    """Return a part of a program as a model, whose large tensors stay where they lie already. Raises VerifyError."""
    if all(
        port.shape is not None for port in (*graph.inputs, *graph.outputs)
    ):  # the checker wants shapes, ONNX Runtime does not
        check(graph, name)
    protos = []
    for key, tensor in graph.stored.items():
        if key not in places:
            protos.append(_stored(graph.builder, key))
            continue
        proto = TensorProto(name=key, data_type=ONNX_DTYPES[graph.builder.stored_dtype(key)], dims=tuple(tensor.shape))
        _refer(proto, places[key])
        protos.append(proto)
    return _serialize(_model(graph, name, protos))


def _byte_count(stored: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in stored.values())


def _files_with_data(graph: Graph, name: str) -> tuple[dict[str, bytes], dict[str, Place]]:
    """Return both files, and where in the second one large tensors lie."""
    protos: list[TensorProto] = []
    places: dict[str, Place] = {}
    chunks: list[bytes] = []
    offset = 0
    for key in graph.stored:
        proto = _stored(graph.builder, key)
        if len(proto.raw_data) > _INLINE_BYTES:
            padding = -offset % _ALIGNMENT_BYTES
            chunks += [bytes(padding), proto.raw_data]
            places[key] = Place(DATA, offset + padding, len(proto.raw_data))
            offset += padding + len(proto.raw_data)
            proto.ClearField("raw_data")
            _refer(proto, places[key])
        protos.append(proto)
    return {MODEL: _serialize(_model(graph, name, protos)), DATA: b"".join(chunks)}, places


def _refer(proto: TensorProto, place: Place) -> None:
    proto.data_location = TensorProto.EXTERNAL
    for label, text in (("location", place.file), ("offset", str(place.offset)), ("length", str(place.length))):
        proto.external_data.add(key=label, value=text)


def check(graph: Graph, name: str) -> None:
    """Check structure and infer every shape with onnx, large weights standing as inputs so that their bytes are not copied.

    Raises VerifyError: a converter is wrong.
    """
    stored = graph.stored
    small = {key: tensor for key, tensor in stored.items() if tensor.numel() <= _SKELETON_LIMIT}
    model = _model(graph, name, [_stored(graph.builder, key) for key in small])
    for key, tensor in stored.items():
        if key not in small:
            model.graph.input.append(_value_info(Port(key, graph.builder.stored_dtype(key), tuple(tensor.shape))))
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as problem:
        raise VerifyError(
            "DS0501",
            "the ONNX model that was written is not valid",
            why=str(problem),
            fix="report this as a bug of dsopt",
        ) from problem


def _model(graph: Graph, name: str, tensors: Iterable[TensorProto]) -> onnx.ModelProto:
    proto = helper.make_graph(
        [_node(each) for each in graph.nodes],
        name,
        [_value_info(port) for port in graph.inputs],
        [_value_info(port) for port in graph.outputs],
        list(tensors),
        value_info=[_value_info(port) for port in graph.inner],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    walked = [each for node in graph.nodes for each in node.walk()]
    domains = {each.domain for each in walked}
    opsets += [helper.make_opsetid(domain, 1) for domain in (MICROSOFT, DSOPT) if domain in domains]
    called = {each.op_type for each in walked if each.domain == DSOPT}
    functions = [_function(each) for key, each in sorted(graph.builder.functions.items()) if key in called]
    model = helper.make_model(proto, opset_imports=opsets, ir_version=IR_VERSION, functions=functions)
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
    shape = None if port.shape is None else list(port.shape)
    return helper.make_tensor_value_info(port.name, ONNX_DTYPES[port.dtype], shape)


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
