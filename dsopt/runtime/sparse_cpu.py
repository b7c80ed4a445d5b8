"""Which code this computer's CPU can run."""

from __future__ import annotations

import ctypes
import os
import platform
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from dsopt.errors import ArtifactError, ToolchainError

_V3 = frozenset(
    [
        "ssse3",
        "sse4_1",
        "sse4_2",
        "popcnt",
        "cx16",
        "avx",
        "avx2",
        "bmi1",
        "bmi2",
        "f16c",
        "fma",
        "abm",
        "movbe",
        "xsave",
    ]
)
NEEDS = {
    "x86-64-v3": _V3,
    "x86-64-v4": _V3 | frozenset(["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"]),
}
"""What each level of the x86-64 psABI needs, as Linux names it; the best level last."""


@cache
def cpu_flags(path: str = "/proc/cpuinfo") -> frozenset[str]:
    """Return what the CPU has, as Linux names it; nothing where that is not known."""
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    lines = (line.partition(":") for line in text.splitlines())
    return next((frozenset(found.split()) for name, _, found in lines if name.strip() == "flags"), frozenset())


def choose_level(levels: Mapping[str, object], flags: frozenset[str] | None = None) -> str:
    """Return the best of some levels that the CPU supports. Raises ToolchainError if there is none."""
    flags = cpu_flags() if flags is None else flags
    known = [name for name in NEEDS if name in levels]
    fitting = [name for name in known if NEEDS[name] <= flags]
    if fitting:
        return fitting[-1]
    missing = " ".join(sorted(NEEDS[known[0]] - flags)) if known else ""
    raise ToolchainError(
        "DS0391", "this CPU cannot run the kernel of sparse attention",
        why=f"it is built for {', '.join(levels) or 'no level'}"
        + (f", and the CPU ({platform.machine()}) lacks {missing}" if missing else ""),
        fix="run the artifact on an x86-64 CPU with AVX2 and FMA, or model.onnx in ONNX Runtime, which computes the same",
    )  # fmt: skip


def load_library(code: bytes | Path) -> ctypes.CDLL:
    """Load a shared object. Raises ArtifactError if it is none for this computer."""
    try:
        if isinstance(code, Path):
            return ctypes.CDLL(str(code))
        handle, name = tempfile.mkstemp(prefix="dsopt-", suffix=".so")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(code)
            return ctypes.CDLL(name)  # what is mapped stays when the file is gone
        finally:
            os.unlink(name)
    except OSError as error:
        raise ArtifactError(
            "DS0392", "the kernel of sparse attention cannot be loaded", why=str(error),
            fix="compile the model again on this computer; where files may not be executed, set TMPDIR to another folder",
        ) from error  # fmt: skip
