"""Turn stored tensors into torch tensors, checking that the bytes match the shape before anything is allocated."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import onnx
import torch
from onnx import TensorProto
from torch import Tensor

from dsopt.frontend.onnx_reader.problems import UnsupportedFormError, bad_tensor, too_large

if TYPE_CHECKING:
    from dsopt.frontend.onnx_reader.external import ExternalData

MAX_TENSOR_BYTES = 2**36

DTYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64,
    TensorProto.BOOL: torch.bool,
    TensorProto.COMPLEX64: torch.complex64,
    TensorProto.COMPLEX128: torch.complex128,
    TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
    TensorProto.FLOAT8E5M2: torch.float8_e5m2,
}
"""Element types that torch has, by their number in ONNX."""

HALVES: dict[int, torch.dtype] = {TensorProto.UINT4: torch.uint8, TensorProto.INT4: torch.int8}
"""Element types of 4 bits, two to a byte, and what holds them here."""

_TYPED_FIELDS = {
    torch.float32: "float_data",
    torch.complex64: "float_data",
    torch.float64: "double_data",
    torch.complex128: "double_data",
    torch.int64: "int64_data",
    torch.uint32: "uint64_data",
    torch.uint64: "uint64_data",
}
_BITS_IN_INT32 = (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


def torch_dtype(number: int, what: str) -> torch.dtype:
    """Return torch's dtype of an ONNX element type. Raises UnsupportedFormError for one that torch lacks, such as strings."""
    if number in DTYPES:
        return DTYPES[number]
    known = number in TensorProto.DataType.values()
    name = TensorProto.DataType.Name(number) if known else f"number {number}"
    raise UnsupportedFormError(f"{what} has element type {name}", "float, integer or bool tensors")


def read_tensor(proto: onnx.TensorProto, external: ExternalData, name: str) -> Tensor:
    """Return a stored tensor. Raises ReadError DS0192, DS0194 or DS0195, and UnsupportedFormError for an element type."""
    shape = tuple(int(size) for size in proto.dims)
    if any(size < 0 for size in shape):
        raise bad_tensor(f"tensor {name!r} has shape {list(shape)}")
    count = math.prod(shape)
    if proto.data_type in HALVES:
        return _from_halves(proto, external, shape, count, name)
    dtype = torch_dtype(proto.data_type, f"tensor {name!r}")
    byte_count = count * dtype.itemsize
    if byte_count > MAX_TENSOR_BYTES:
        raise too_large(f"tensor {name!r} of shape {list(shape)} would take {byte_count:,} bytes")
    if proto.data_location == TensorProto.EXTERNAL:
        entries = {entry.key: entry.value for entry in proto.external_data}
        buffer = external.read(entries, byte_count, name)
    elif proto.HasField("raw_data"):
        buffer = bytearray(proto.raw_data)
    else:
        return _from_typed_field(proto, dtype, shape, count, name)
    if len(buffer) != byte_count:
        raise bad_tensor(
            f"tensor {name!r} has {len(buffer):,} bytes; shape {list(shape)} of {dtype} needs {byte_count:,}"
        )
    if not count:
        return torch.empty(shape, dtype=dtype)
    if dtype == torch.bool:  # any other byte would be a bool that is neither
        return torch.frombuffer(buffer, dtype=torch.uint8).ne(0).reshape(shape)
    return torch.frombuffer(buffer, dtype=dtype).reshape(shape)


def _from_halves(
    proto: onnx.TensorProto, external: ExternalData, shape: tuple[int, ...], count: int, name: str
) -> Tensor:
    """Return 4-bit integers, of which the first of a byte is in its low half."""
    if count > MAX_TENSOR_BYTES:
        raise too_large(f"tensor {name!r} of shape {list(shape)} would take {count:,} bytes")
    packed = onnx.TensorProto()
    packed.CopyFrom(proto)
    packed.data_type = TensorProto.UINT8
    packed.dims[:] = [(count + 1) // 2]
    pairs = read_tensor(packed, external, name)
    halves = torch.stack([pairs & 15, pairs >> 4], -1).reshape(-1)[:count].reshape(shape)
    if proto.data_type == TensorProto.UINT4:
        return halves
    return ((halves.to(torch.int8) ^ 8) - 8).contiguous()  # the fourth bit is the sign


def _from_typed_field(
    proto: onnx.TensorProto, dtype: torch.dtype, shape: tuple[int, ...], count: int, name: str
) -> Tensor:
    field = _TYPED_FIELDS.get(dtype, "int32_data")
    numbers = getattr(proto, field)
    expected = 2 * count if dtype.is_complex else count
    if len(numbers) != expected:
        raise bad_tensor(f"tensor {name!r} has {len(numbers):,} elements; shape {list(shape)} needs {expected:,}")
    if field == "float_data":
        values = torch.from_numpy(np.fromiter(numbers, np.float32, expected))
    elif field == "double_data":
        values = torch.from_numpy(np.fromiter(numbers, np.float64, expected))
    elif field == "uint64_data":
        values = torch.from_numpy(np.fromiter(numbers, np.uint64, expected))
    else:
        values = torch.from_numpy(np.fromiter(numbers, np.int64, expected))
    if dtype.is_complex:
        values = torch.view_as_complex(values.reshape(-1, 2))
    if dtype in _BITS_IN_INT32:
        bits = values.to(torch.int16) if dtype.itemsize == 2 else values.to(torch.uint8)
        return bits.view(dtype).reshape(shape)
    return values.to(dtype).reshape(shape)
