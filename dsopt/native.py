"""Compiles C files of this package once, with the C compiler found, into the user's cache."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_FLAGS = ("-std=c99", "-O2", "-shared", "-fPIC")
_SECONDS = 120


def cache_folder() -> Path:
    """Return the folder for what can be made again: $XDG_CACHE_HOME/dsopt, or .cache/dsopt of the user's home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "dsopt"


def host_compilers() -> tuple[tuple[str, ...], ...]:
    """Return the commands of the C compilers for this computer, the preferred one first."""
    found = [(path,) for name in ("cc", "gcc", "clang") if (path := shutil.which(name))][:1]
    if importlib.util.find_spec("ziglang"):
        return (*found, (sys.executable, "-m", "ziglang", "cc"))
    return tuple(found)


def native_library(*sources: Path) -> Path | None:
    """Return a library made of C files, named after the first; None where there is no compiler or no place to keep it.

    The file's name holds a hash of the sources and the machine, and it is put in place by one rename: processes that start at the
    same time do not disturb each other, and what another version of dsopt made is not used.
    """
    content = b"\0".join(source.read_bytes() for source in sources)
    key = hashlib.sha256(content + repr((_FLAGS, platform.machine(), sys.platform)).encode()).hexdigest()[:16]
    try:
        folder = cache_folder()
        library = folder / f"{sources[0].stem.replace('_', '-')}-{key}.so"
        if library.exists():
            return library
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            built = Path(work) / library.name
            for command in host_compilers():
                if _compile(command, sources, built):
                    built.replace(library)
                    return library
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None
    return None


def _compile(command: tuple[str, ...], sources: tuple[Path, ...], output: Path) -> bool:
    try:
        done = subprocess.run(
            [*command, *_FLAGS, "-o", str(output), *map(str, sources)],
            check=False, capture_output=True, timeout=_SECONDS, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and output.exists()
