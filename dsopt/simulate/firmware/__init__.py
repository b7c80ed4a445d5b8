"""The C files and the linker script of README.md, as the toolchain takes them."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent


def sources() -> dict[str, bytes]:
    """Return the C files and headers by name, sorted."""
    return {path.name: path.read_bytes() for path in sorted(_FOLDER.iterdir()) if path.suffix in (".c", ".h")}


def linker_script() -> str:
    """Return the linker script, in which @NAMES@ stand for addresses and lengths."""
    return (_FOLDER / "link.ld").read_text(encoding="utf-8")
