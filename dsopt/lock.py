"""lock.json: what a build was made from, so that it can be repeated: versions, seed, passes, hash of the program. No times, no paths."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from dsopt.ir import Program
from dsopt.ir.archive import program_bytes
from dsopt.passes.base import Pass
from dsopt.target import Target

_PACKAGES = ("apache-tvm", "dsopt", "numpy", "onnx", "onnxruntime", "torch", "ziglang")


def lock_file(program: Program, target: Target, passes: Sequence[Pass], seed: int) -> bytes:
    """Return the lock as JSON bytes."""
    lock = {
        "schema": 1,
        "target": target.name,
        "passes": [str(each) for each in passes],
        "seed": seed,
        "program_sha256": hashlib.sha256(program_bytes(program)).hexdigest(),
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }
    return (json.dumps(lock, indent=1, sort_keys=True) + "\n").encode()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
