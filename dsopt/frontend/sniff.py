"""Tell what a model file is by its content, whatever its name; nothing in it is run or unpickled."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path

from dsopt.errors import ReadError
from dsopt.frontend.pickles import scan_pickle
from dsopt.zip_limits import LIMITS, BoundedZip, open_zip


class Kind(Enum):
    """What a file or folder holds, as far as dsopt tells them apart."""

    PT2 = "an exported program"
    COMPILED_PT2 = "a package of AOTInductor"
    TORCHSCRIPT = "a TorchScript module"
    PICKLED_TENSORS = "pickled tensors, such as a state_dict"
    PICKLED_OBJECTS = "a pickled module or other Python objects"
    ONNX = "an ONNX model"
    SAFETENSORS = "safetensors weights"
    PROGRAM = "a dsopt program"
    ARTIFACT = "a dsopt artifact"


_FOREIGN = (
    (b"\x89HDF\r\n\x1a\n", "a Keras or HDF5 file"),
    (b"GGUF", "a GGUF file"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"\x7fELF", "a program for Linux"),
    (b"\x93NUMPY", "a numpy array"),
    (b"version https://git-lfs", "a Git LFS pointer: run `git lfs pull` to get the file itself"),
    (b"<!DOCTYPE", "a web page: the download gave an error page"),
    (b"<html", "a web page: the download gave an error page"),
)
_READ = "dsopt reads .pt2 (torch.export.save), .onnx, .pt, and dsopt programs; a Python model is named as package.module:factory."
_ONNX_FIELDS = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
"""Field number -> wire type of ModelProto (onnx.proto3)."""


def sniff(path: Path) -> Kind:
    """Return what `path` holds. Raises ReadError: DS0140 if it cannot be read, DS0141 if it is damaged, DS0143 if unknown."""
    if path.is_dir():
        if (path / "manifest.json").is_file():
            return Kind.ARTIFACT
        raise ReadError("DS0143", f"{path} is a folder without manifest.json, so it is no artifact", fix=_READ)
    try:
        with path.open("rb") as stream:
            head = stream.read(4096)
            byte_count = path.stat().st_size
    except OSError as error:
        raise ReadError("DS0140", f"{path} cannot be read: {error.strerror or error}") from error
    if not head:
        raise ReadError("DS0143", f"{path} is empty", fix=_READ)
    if head.startswith(b"PK"):
        return _zip_kind(path)
    if _is_safetensors(head, byte_count):
        return Kind.SAFETENSORS
    if head[0] == 0x80 and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return _pickle_kind(path)
    for magic, what in _FOREIGN:
        if head.startswith(magic):
            raise ReadError("DS0143", f"{path} is {what}", fix=_READ)
    if head[4:8] == b"TFL3":
        raise ReadError("DS0143", f"{path} is a TensorFlow Lite model", fix=_READ)
    if _is_onnx(path, byte_count):
        return Kind.ONNX
    raise ReadError("DS0143", f"{path} is not a model that dsopt knows", why=_first_bytes(head), fix=_READ)


def _zip_kind(path: Path) -> Kind:
    with open_zip(path) as archive:
        names = archive.names
        if "serialized_exported_program.json" in archive or any(_is_model(name) for name in names):
            return Kind.PT2
        if "program.json" in archive:
            return Kind.PROGRAM
        if "manifest.json" in archive:
            return Kind.ARTIFACT
        if any(name.startswith("data/aotinductor/") for name in names):
            return Kind.COMPILED_PT2
        if "constants.pkl" in archive or any(name.startswith("code/") for name in names):
            return Kind.TORCHSCRIPT
        if "data.pkl" in archive:
            return _tensors_or_objects(archive.read("data.pkl", LIMITS.pickle_bytes))
        raise ReadError("DS0143", f"{path} is a zip archive without a model in it", why=_members(archive), fix=_READ)


def _is_model(name: str) -> bool:
    return name.startswith("models/") and name.endswith(".json")


def _members(archive: BoundedZip) -> str:
    shown = ", ".join(archive.names[:5])
    return f"It holds {shown}{', ...' if len(archive.names) > 5 else ''}." if shown else "It is empty."


def _pickle_kind(path: Path) -> Kind:
    """Look into a pickle without a zip around it, as torch.save wrote before 1.6: three small pickles, then the objects."""
    with path.open("rb") as stream:
        return _tensors_or_objects(stream.read(LIMITS.pickle_bytes))


def _tensors_or_objects(data: bytes) -> Kind:
    return Kind.PICKLED_OBJECTS if scan_pickle(data).foreign else Kind.PICKLED_TENSORS


def _is_safetensors(head: bytes, byte_count: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    if not (2 <= length <= byte_count - 8) or head[8:9] != b"{":
        return False
    if len(head) < 8 + length:
        return head[9:10] == b'"'
    try:
        return isinstance(json.loads(head[8 : 8 + length]), dict)
    except (ValueError, RecursionError):
        return False


def _is_onnx(path: Path, byte_count: int) -> bool:
    """Walk the top-level protobuf fields, skipping their contents: all must be fields of ModelProto, the graph among them.

    A last field that runs past the end is let through, so that a cut file is answered by the ONNX reader as a damaged one.
    """
    seen: set[int] = set()
    position = 0
    with path.open("rb") as stream:
        for _ in range(10_000):
            if position >= byte_count:
                break
            stream.seek(position)
            header = stream.read(20)
            tag, used = _varint(header)
            if used == 0 or _ONNX_FIELDS.get(tag >> 3) != tag & 7:
                return False
            value, more = _varint(header[used:])
            if more == 0:
                return bool(seen)
            position += used + more + (value if tag & 7 == 2 else 0)
            seen.add(tag >> 3)
    return 7 in seen or {1, 8} <= seen


def _varint(data: bytes) -> tuple[int, int]:
    """Return a protobuf varint and the bytes it takes; 0 bytes if it is cut or too long."""
    value = 0
    for index, byte in enumerate(data[:10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, index + 1
    return 0, 0


def _first_bytes(head: bytes) -> str:
    text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in head[:24])
    return f"It begins with {text!r}."
