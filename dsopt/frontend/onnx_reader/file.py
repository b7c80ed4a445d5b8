"""Open an untrusted .onnx file: parse the protobuf, which runs no code, and check that it is a model at all."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import onnx

from dsopt.errors import ReadError
from dsopt.frontend.onnx_reader.problems import damaged, too_large

MAX_FILE_BYTES = 2**31 - 1
"""Protobuf's own limit; larger models keep their weights in external data."""
_STRING, _MESSAGE = 9, 11  # numbers of field types in protobuf's descriptor.proto
OLDEST_OPSET = 7
"""Before opset 7, binary operators had a broadcasting rule of their own."""


def load_proto(source: Path | bytes) -> tuple[onnx.ModelProto, str]:
    """Return the parsed model and what to call it in messages.

    Raises ReadError: DS0190 if it cannot be read, DS0191 if it is no ONNX model, DS0192 if it is too large, DS0199 if its
    version is not read.
    """
    if isinstance(source, bytes):
        data, label = source, "the model"
    else:
        data, label = _read(source), str(source)
    if len(data) > MAX_FILE_BYTES:
        raise too_large(
            f"{label} has {len(data):,} bytes; at most {MAX_FILE_BYTES:,} are read", why="Protobuf ends there."
        )
    if not data:
        raise damaged(label, "is empty")
    try:
        model = onnx.ModelProto.FromString(data)
    except Exception as error:  # the decoder's error class belongs to protobuf, which has several implementations
        raise damaged(label, "is not an ONNX model, or is truncated or altered", why=str(error)) from error
    if not _is_text(model):
        raise damaged(label, "is truncated or altered", why="a name in it is no text")
    if not model.HasField("graph") or not model.opset_import:
        raise damaged(label, "holds no ONNX graph, or is truncated or altered")
    return model, label


def opsets(imports: object, label: str) -> dict[str, int]:
    """Return the version of each operator domain, "" for ONNX's own. Raises ReadError DS0199 for an unreadable one."""
    found: dict[str, int] = {}
    for item in imports:  # type: ignore[attr-defined]
        domain = "" if item.domain == "ai.onnx" else str(item.domain)
        found[domain] = int(item.version)
    version, newest = found.get("", OLDEST_OPSET), onnx.defs.onnx_opset_version()
    if version < OLDEST_OPSET:
        fix = "Convert it with onnx.version_converter.convert_version(model, 17), or export it again."
        raise ReadError("DS0199", f"{label} uses opset {version}; opsets {OLDEST_OPSET} to {newest} are read", fix=fix)
    if version > newest:
        fix = "Update onnx, or export the model with an older opset_version."
        raise ReadError("DS0199", f"{label} uses opset {version}; opsets {OLDEST_OPSET} to {newest} are read", fix=fix)
    return found


def _is_text(message: Any) -> bool:
    """Tell whether all text of a message is text; the decoder leaves bytes in the place of what is not."""
    for field, value in message.ListFields():
        if field.type not in (_STRING, _MESSAGE):
            continue
        for item in (value,) if isinstance(value, (str, bytes)) or hasattr(value, "ListFields") else value:
            if isinstance(item, bytes) or (field.type == _MESSAGE and not _is_text(item)):
                return False
    return True


def _read(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ReadError("DS0190", f"{path} is not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            what = f"{path} has {status.st_size:,} bytes; at most {MAX_FILE_BYTES:,} are read"
            raise too_large(what, why="Protobuf ends there; larger models keep their weights in external data.")
        return path.read_bytes()
    except OSError as error:
        raise ReadError("DS0190", f"{path} cannot be read: {error.strerror or error}") from error
