"""Stages that were done, in a folder: each program beside a file that says what it was made from, written last."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dsopt.artifact.writing import replace_file
from dsopt.errors import DsoptError, WriteError
from dsopt.ir import Program
from dsopt.ir.archive import program_bytes

_KIND, _SCHEMA = "dsopt compression stage", 1


def first_key(program: Program, **options: Any) -> str:
    """Return the hash of what a compression begins with. options: plain values that change what stages do."""
    versions = {name: version(name) for name in ("dsopt", "torch")}
    given = {"program": hashlib.sha256(program_bytes(program)).hexdigest(), "versions": versions, **options}
    return _hash(given)


def next_key(key: str, stage: str) -> str:
    """Return the hash of a stage: of all that was before it, and of its own text."""
    return _hash({"before": key, "stage": stage})


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Store:
    """The folder; None keeps nothing. Other options have other keys, and so other files, so that nothing that was done is lost."""

    folder: Path | None

    def checkpoint(self, number: int, stage: str, key: str) -> Path | None:
        """Return the file that a training goes on from."""
        return None if self.folder is None else self._path(number, stage, key, "ckpt")

    def load(self, number: int, stage: str, key: str) -> tuple[Program, dict[str, Any]] | None:
        """Return what a stage left, and what was measured of it; None if it was not done, or what it left is damaged."""
        if self.folder is None:
            return None
        try:
            record = json.loads(self._path(number, stage, key, "json").read_bytes())
            content = self._path(number, stage, key, "dsoptp").read_bytes()
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(record, dict) or (record.get("kind"), record.get("schema"), record.get("key")) != (
            _KIND,
            _SCHEMA,
            key,
        ):
            return None
        if record.get("program_sha256") != hashlib.sha256(content).hexdigest():
            return None
        measured = record.get("measured")
        try:
            program = Program.load(self._path(number, stage, key, "dsoptp"))
        except DsoptError:
            return None
        return (program, measured) if isinstance(measured, dict) else None

    def save(self, number: int, stage: str, key: str, program: Program, measured: dict[str, Any]) -> None:
        """Write the program, then its record, then remove the checkpoint of its training. Raises WriteError."""
        if self.folder is None:
            return
        content = program_bytes(program)
        record = {
            "kind": _KIND, "schema": _SCHEMA, "stage": stage, "key": key,
            "program_sha256": hashlib.sha256(content).hexdigest(), "measured": measured,
        }  # fmt: skip
        replace_file(self._path(number, stage, key, "dsoptp"), content)
        replace_file(
            self._path(number, stage, key, "json"), (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()
        )
        try:
            self._path(number, stage, key, "ckpt").unlink(missing_ok=True)
        except OSError as problem:
            raise WriteError("DS0360", "cannot remove a checkpoint", why=problem.strerror or str(problem)) from problem

    def _path(self, number: int, stage: str, key: str, ending: str) -> Path:
        assert self.folder is not None
        name = re.split(r"[^a-z0-9-]", stage, maxsplit=1)[0]
        return self.folder / f"{number:02d}-{name}-{key[:12]}.{ending}"
