"""The native block counter, compiled once with the C compiler found."""

from __future__ import annotations

from pathlib import Path

from dsopt.native import native_library

_SOURCE = Path(__file__).with_name("block_counter.c")


def block_counter_library() -> Path | None:
    """Return the compiled block counter; None where there is no compiler or no place to keep it."""
    return native_library(_SOURCE)
