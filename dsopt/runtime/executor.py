"""What a session asks of the module that runs one kind of artifact, such as `runtime/onnx.py`.

Such a module has `open_executor(artifact) -> Executor`; a cpu one also takes `threads=`. `run_many`, `trace` and `profile` are optional.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy.typing as npt

Array = npt.NDArray[Any]


class Executor(Protocol):
    """Runs an artifact over its graph-level names. Arrays given are contiguous, of native byte order, and fit the manifest."""

    def run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Take inputs and states ("state.NAME"), return outputs and next states ("next.NAME"), in arrays of their own."""

    def close(self) -> None:
        """Free what the executor holds; called once."""


@runtime_checkable
class BatchExecutor(Executor, Protocol):
    """An executor to which many runs at once cost much less than one after the other."""

    def run_many(self, feeds: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
        """Run once for each of `feeds`, carrying no state from one to the next."""


@runtime_checkable
class TracingExecutor(Executor, Protocol):
    """An executor that can also give the values between layers."""

    def trace(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Return the result of each node of manifest["layers"] by the node's name, as far as it exists in the emitted code."""


@dataclass(frozen=True)
class LayerCost:
    """What one layer cost in one run: `instructions` where they were counted, `seconds` where time was taken."""

    node: str
    layer: str
    instructions: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Profile:
    """What one run cost. instructions: of the whole run on an emulated core, None elsewhere. Layers are in order of execution."""

    layers: tuple[LayerCost, ...]
    instructions: int | None = None


@runtime_checkable
class ProfilingExecutor(Executor, Protocol):
    """An executor that can also count instructions or take times, layer by layer."""

    def profile(self, feeds: dict[str, Array]) -> Profile:
        """Return what one run costs: exact counts, or the median of several timed runs."""
