"""An executor of the generated C on this computer, for judging many samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dsopt.artifact import Artifact
from dsopt.simulate.desk import DeskModel

Array = npt.NDArray[Any]


class DeskExecutor:
    """Runs the C of an artifact that this process has emitted, over the graph-level names. Raises ToolchainError without a compiler."""

    def __init__(self, artifact: Artifact) -> None:
        manifest = artifact.manifest
        states = manifest.get("states", ())
        self._inputs = [*_ports(manifest["inputs"]), *_ports(states, "input")]
        self._outputs = [*_ports(manifest["outputs"]), *_ports(states, "output")]
        files = {name: bytes(artifact.files[name]) for name in artifact.files if name.endswith((".c", ".h"))}
        taken, given = (
            [math.prod(shape) * dtype.itemsize for _, shape, dtype in ports] for ports in (self._inputs, self._outputs)
        )
        self._model = DeskModel(files, str(manifest["c_prefix"]), taken, given, len(states))

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once."""
        return self.run_many([feeds])[0]

    def run_many(self, feeds: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
        """Run once for each of `feeds`, carrying no state from one to the next."""
        runs = [[np.ascontiguousarray(feed[name]).tobytes() for name, _, _ in self._inputs] for feed in feeds]
        return [
            {
                name: np.frombuffer(content, dtype).reshape(shape)
                for (name, shape, dtype), content in zip(self._outputs, each, strict=True)
            }
            for each in self._model.run_many(runs)
        ]

    def close(self) -> None:
        """Delete what was built."""
        self._model.close()


def _ports(entries: Sequence[Mapping[str, Any]], key: str = "name") -> list[tuple[str, tuple[int, ...], np.dtype[Any]]]:
    return [(str(entry[key]), tuple(entry["shape"]), np.dtype(entry["dtype"])) for entry in entries]
