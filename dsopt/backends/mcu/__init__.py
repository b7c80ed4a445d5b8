"""The microcontroller backend: Program -> loop nests -> freestanding C99 with one static arena, measured on an emulated core."""

from __future__ import annotations

from dsopt.backends.mcu.backend import McuBackend

__all__ = ["McuBackend"]
