"""Serialise a model so that stored tensors begin at multiples of `ALIGNMENT` bytes, and say where: other files may then refer to them.

Fields of a protobuf message may stand in any order, and a reader passes over fields that it does not know, which is what fills up:
https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from dsopt.runtime.onnx_session import varint

ALIGNMENT = 64

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9  # of ModelProto, GraphProto and TensorProto
_FILLING = 2000  # far from the fields of TensorProto


def lay(model: onnx.ModelProto, tensors: Sequence[onnx.TensorProto]) -> tuple[bytes, dict[str, int]]:
    """Return the bytes of a model with more stored tensors, and where the elements of each begin.

    tensors: with raw_data. The model itself is as before afterwards.
    """
    rest = onnx.ModelProto()
    rest.CopyFrom(model)
    rest.ClearField("graph")
    head: bytes = rest.SerializeToString(deterministic=True)
    graph: bytes = model.graph.SerializeToString(deterministic=True)
    for width in range(
        1, 10
    ):  # bytes of the graph's length, which depends on the filling, which depends on where it begins
        start = len(head) + 1 + width
        parts, places = _parts(start + len(graph), tensors)
        length = varint(len(graph) + sum(map(len, parts)))
        if len(length) == width:
            return b"".join([head, _tag(_GRAPH), length, graph, *parts]), places
    raise AssertionError("a length takes at most 9 bytes")


def _parts(position: int, tensors: Sequence[onnx.TensorProto]) -> tuple[list[bytes], dict[str, int]]:
    parts: list[bytes] = []
    places: dict[str, int] = {}
    for tensor in tensors:
        before = _before(position, tensor)
        places[tensor.name] = position + len(before)
        parts += [before, tensor.raw_data]
        position = places[tensor.name] + len(tensor.raw_data)
    return parts, places


def _before(position: int, tensor: onnx.TensorProto) -> bytes:
    """Return all of a tensor that stands before its elements, so long that these begin at a multiple of the alignment."""
    described = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    head: bytes = described.SerializeToString(deterministic=True)
    raw = _tag(_RAW_DATA) + varint(len(tensor.raw_data))
    least = len(_tag(_FILLING)) + 1
    for slack in (0, *range(least, least + 2 * ALIGNMENT)):
        filling = _tag(_FILLING) + varint(slack - least) + bytes(slack - least) if slack else b""
        inner = head + filling + raw
        before = _tag(_INITIALIZER) + varint(len(inner) + len(tensor.raw_data)) + inner
        if (position + len(before)) % ALIGNMENT == 0:
            return before
    raise AssertionError("one of the lengths fits")


def _tag(number: int) -> bytes:
    return varint(number << 3 | 2)
