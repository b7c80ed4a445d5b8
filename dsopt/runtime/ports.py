"""How an array of a program lies in the memory of a chip: its bytes, perhaps channels last, perhaps integers of a grid."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dsopt.errors import ArtifactError

Array = npt.NDArray[Any]

AGAIN = "compile the model again"


@dataclass(frozen=True)
class Grid:
    """Integers from low to high that stand for scale * (q - zero_point); rounded as `dsopt.ops.rounding` says."""

    dtype: np.dtype[Any]
    scale: float
    zero_point: int
    low: int
    high: int


@dataclass(frozen=True)
class Port:
    """An array by name. dtype: as the program has it; in memory it has that of `grid`, if there is one."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    channels_last: bool = False
    grid: Grid | None = None

    @staticmethod
    def of(entry: Mapping[str, Any], key: str = "name") -> Port:
        """Read an entry of a manifest. Raises ArtifactError for what describes no array."""
        shape = tuple(entry["shape"])
        if not all(isinstance(size, int) and size >= 0 for size in shape):
            raise ArtifactError(
                "DS0862", f"{entry[key]!r} has the shape {list(shape)}, and a chip needs numbers", fix=AGAIN
            )
        try:
            stored: Mapping[str, Any] | None = entry.get("stored")
            grid = None if stored is None else _grid(stored)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                "DS0862", f"the manifest does not say how {entry[key]!r} is stored", fix=AGAIN
            ) from error
        return Port(str(entry[key]), shape, np.dtype(entry["dtype"]), entry.get("channels_last") is True, grid)

    @property
    def byte_count(self) -> int:
        """Return the bytes in memory."""
        return (self.grid.dtype if self.grid else self.dtype).itemsize * math.prod(self.shape)

    def write(self, values: Array) -> bytes:
        """Return the bytes of an array of the program."""
        if self.grid is None:
            return bytes(np.ascontiguousarray(values).data)
        grid = self.grid
        with np.errstate(over="ignore", invalid="ignore"):
            steps = np.rint(np.asarray(values, np.float32) / np.float32(grid.scale))
        shifted = np.where(np.isnan(steps), np.float32(0), steps) + np.float32(grid.zero_point)
        return bytes(np.clip(shifted, grid.low, grid.high).astype(grid.dtype).data)

    def read(self, content: bytes) -> Array:
        """Return the array of the program that bytes in memory are."""
        found: Array = np.frombuffer(content, self.grid.dtype if self.grid else self.dtype)
        if self.grid is not None:
            real = (found.astype(np.int64) - self.grid.zero_point).astype(np.float32) * np.float32(self.grid.scale)
            found = real.astype(self.dtype)
        if self.channels_last:
            stored = found.reshape(self.shape[0], *self.shape[2:], self.shape[1])
            return np.ascontiguousarray(np.moveaxis(stored, -1, 1))
        copied: Array = found.reshape(self.shape).copy()
        return copied


def _grid(stored: Mapping[str, Any]) -> Grid:
    dtype = np.dtype(stored["dtype"])
    grid = Grid(dtype, float(stored["scale"]), int(stored["zero_point"]), int(stored["low"]), int(stored["high"]))
    if dtype not in (np.int8, np.int16, np.uint8) or not 0 < grid.scale < math.inf:
        raise ValueError(stored)
    return grid
