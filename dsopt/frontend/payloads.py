"""Read the tensors of an exported archive: raw bytes where torch wrote them so, pickles of tensors only elsewhere."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dsopt.errors import ReadError
from dsopt.frontend.archive_json import checked_payloads, parse_json
from dsopt.frontend.pickles import name_list, scan_pickle
from dsopt.ir.torch_private import archive_dtype
from dsopt.zip_limits import LIMITS, BoundedZip, open_zip

_AGAIN = "Save the program again with torch.export.save of torch 2.9 or newer, which stores weights as plain bytes."


def read_payloads(archive: BoundedZip, folder: str, index: str, legacy: str) -> dict[str, Tensor]:
    """Return {weight name: tensor} of one folder of an archive; names that shared memory when saved share it again.

    folder: "data/weights/".  index: the JSON that lists them.  legacy: the one pickle of older files, read if it is there.
    Raises ReadError: DS0147 if a tensor does not fit its bytes, DS0148 if it could only be read by unpickling objects.
    """
    if legacy in archive:
        return tensors_by_name(load_tensors(archive.read(legacy), legacy), legacy)
    config = checked_payloads(parse_json(archive.read(index, LIMITS.json_bytes), index))
    storages: dict[str, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    for name, payload in config.items():
        member = folder + payload["path_name"]
        if payload["use_pickle"] or not payload["path_name"].startswith(("weight_", "tensor_")):
            tensors[name] = _pickled_tensor(archive, member, name)
            continue
        if payload["tensor_meta"] is None:
            raise ReadError("DS0147", f"{index} does not say what {name!r} is", fix=_AGAIN)
        if member not in storages:
            storages[member] = (
                torch.frombuffer(buffer, dtype=torch.uint8)
                if (buffer := archive.read_into_buffer(member))
                else torch.empty(0, dtype=torch.uint8)
            )
        tensors[name] = _strided(storages[member], payload["tensor_meta"], name, payload["is_param"])
    return tensors


def _strided(storage: Tensor, meta: dict[str, Any], name: str, is_parameter: bool) -> Tensor:
    """View raw bytes as the tensor that `meta` describes, after checking that it stays inside of them."""
    if meta["layout"] != 7:
        raise ReadError("DS0147", f"{name!r} is stored sparse or blocked; only strided tensors are read", fix=_AGAIN)
    sizes, strides = [_number(item, name) for item in meta["sizes"]], [_number(item, name) for item in meta["strides"]]
    offset, dtype = _number(meta["storage_offset"], name), archive_dtype(meta["dtype"])
    if len(sizes) != len(strides):
        raise ReadError("DS0147", f"{name!r} has {len(sizes)} sizes and {len(strides)} strides", fix=_AGAIN)
    count = storage.numel() // dtype.itemsize
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if 0 not in sizes and last >= count:
        what = f"{name!r} of shape {sizes} needs {(last + 1) * dtype.itemsize:,} bytes and has {storage.numel():,}"
        raise ReadError("DS0147", what, why="The weights were cut off, or not saved at all.", fix=_AGAIN)
    if 0 in sizes:
        tensor = torch.empty(sizes, dtype=dtype)
    elif dtype is torch.bool:  # any other byte than 0 and 1 is undefined behaviour in a bool tensor
        tensor = (storage != 0).as_strided(sizes, strides, offset)
    else:
        tensor = storage[: count * dtype.itemsize].view(dtype).as_strided(sizes, strides, offset)
    can_train = meta["requires_grad"] and (dtype.is_floating_point or dtype.is_complex)
    return nn.Parameter(tensor, requires_grad=can_train) if is_parameter else tensor


def _number(item: dict[str, Any], name: str) -> int:
    value = item.get("as_int")
    if not isinstance(value, int) or not 0 <= value < 2**48:
        raise ReadError("DS0147", f"a size or stride of {name!r} is not a count", fix=_AGAIN)
    return value


def _pickled_tensor(archive: BoundedZip, member: str, name: str) -> Tensor:
    value = load_tensors(archive.read(member), member)
    if not isinstance(value, Tensor):
        raise ReadError("DS0148", f"{name!r} is a pickled {type(value).__name__}, not a tensor", fix=_AGAIN)
    return value


def tensors_by_name(value: object, label: str) -> dict[str, Tensor]:
    """Return a {name: tensor} dict that a pickle held. Raises ReadError DS0148 if it held anything else."""
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ReadError("DS0148", f"{label} does not hold tensors by name", fix=_AGAIN)
    odd = [key for key, item in value.items() if not isinstance(item, Tensor)]
    if odd:
        raise ReadError("DS0148", f"{label} holds objects that are not tensors: {name_list(odd)}", fix=_AGAIN)
    return dict(value)


def load_tensors(data: bytes, label: str) -> object:
    """Read what torch.save wrote, tensors and plain containers only; an empty file gives {}.

    Nothing is imported or called by name: torch's restricted unpickler reads it, after a pass without memory has shown
    that the tensors are not larger than the file. Raises ReadError DS0148 if it holds anything else, DS0141 if damaged.
    """
    if not data:
        return {}
    if not data.startswith(b"PK"):
        raise ReadError("DS0148", f"{label} is a pickle of an old kind, which is not read", fix=_AGAIN)
    with open_zip(data, label) as inner:
        index = next((name for name in inner.names if name == "data.pkl"), None)
        if index is None:
            raise ReadError("DS0141", f"{label} is not what torch.save writes", fix=_AGAIN)
        scan = scan_pickle(inner.read(index, LIMITS.pickle_bytes))
        if scan.foreign or not scan.is_complete:
            what = (
                f"{label} is a pickle that imports {name_list(scan.foreign)}" if scan.foreign else f"{label} is cut off"
            )
            raise ReadError("DS0148", what, why="Unpickling runs code that the file chooses.", fix=_AGAIN)
    planned = sum(_storage_bytes(_restricted_load(data, label, "meta")).values())
    if planned > len(data):
        raise ReadError("DS0148", f"{label} has {len(data):,} bytes and asks for tensors of {planned:,}", fix=_AGAIN)
    return _restricted_load(data, label, "cpu")


def _restricted_load(data: bytes, label: str, device: str) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    except Exception as error:  # the unpickler raises whatever the opcodes of a damaged file lead to
        first_line = str(error).split("\n", 1)[0][:300]
        raise ReadError("DS0148", f"{label} cannot be read as plain tensors", why=first_line, fix=_AGAIN) from error


def _storage_bytes(value: object) -> dict[int, int]:
    """Return {storage: bytes} of all tensors in nested plain containers."""
    return {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in _tensors(value)}


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
