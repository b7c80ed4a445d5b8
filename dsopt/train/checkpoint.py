"""Checkpoints of a training: tensors and plain numbers, read back without running code, replaced as a whole."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import nn

from dsopt.errors import ReadError, WriteError

_SCHEMA = 1


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write beside `path` and rename, so that a crash leaves the checkpoint before. Raises WriteError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"schema": _SCHEMA, "kind": "dsopt training", **content}, temporary)
        temporary.replace(path)
    except OSError as problem:
        raise WriteError(
            "DS0360", f"cannot write the checkpoint {path}", why=problem.strerror or str(problem)
        ) from problem
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path, signature: str) -> dict[str, Any] | None:
    """Read a checkpoint; None if there is none. signature: of the training, which must be the same.

    Raises ReadError if it is damaged, or of another training.
    """
    if not path.exists():
        return None
    try:
        with ZipFile(path) as archive:
            damaged = archive.testzip()  # torch itself reads past wrong checksums
        if damaged is not None:
            raise BadZipFile(f"{damaged} is damaged")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # torch raises whatever its reader met
        raise ReadError(
            "DS0361", f"{path} is no checkpoint of a training", why=f"{type(problem).__name__}: {str(problem)[:200]}",
            fix="delete it to begin anew",
        ) from problem  # fmt: skip
    if not isinstance(content, dict) or content.get("kind") != "dsopt training" or content.get("schema") != _SCHEMA:
        raise ReadError("DS0361", f"{path} is no checkpoint of a training", fix="delete it to begin anew")
    if content.get("signature") != signature:
        raise ReadError(
            "DS0362", f"{path} belongs to another training",
            why=f"it was begun as {content.get('signature')!r}, and this one is {signature!r}",
            fix="name another file, or delete this one to begin anew",
        )  # fmt: skip
    return content


def digest(module: nn.Module) -> str:
    """Return a short text that tells one set of weights' names and shapes from another."""
    kinds = [f"{name} {value.dtype} {tuple(value.shape)}" for name, value in sorted(module.state_dict().items())]
    return sha256("\n".join(kinds).encode()).hexdigest()[:12]
