"""An executor of the generated C on this computer, for judging many samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt

from dsopt.artifact import Artifact
from dsopt.runtime.ports import Port
from dsopt.simulate.desk import DeskModel

Array = npt.NDArray[Any]


class DeskExecutor:
    """Runs the C of an artifact that this process has emitted, over the graph-level names. Raises ToolchainError without a compiler."""

    def __init__(self, artifact: Artifact) -> None:
        manifest = artifact.manifest
        states = manifest.get("states", ())
        self._inputs = [Port.of(each) for each in manifest["inputs"]] + [Port.of(each, "input") for each in states]
        self._outputs = [Port.of(each) for each in manifest["outputs"]] + [Port.of(each, "output") for each in states]
        files = {name: bytes(artifact.files[name]) for name in artifact.files if name.endswith((".c", ".h"))}
        taken, given = ([port.byte_count for port in ports] for ports in (self._inputs, self._outputs))
        self._model = DeskModel(files, str(manifest["c_prefix"]), taken, given, len(states))

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once."""
        return self.run_many([feeds])[0]

    def run_many(self, feeds: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
        """Run once for each of `feeds`, carrying no state from one to the next."""
        runs = [[port.write(feed[port.name]) for port in self._inputs] for feed in feeds]
        return [
            {port.name: port.read(content) for port, content in zip(self._outputs, each, strict=True)}
            for each in self._model.run_many(runs)
        ]

    def close(self) -> None:
        """Delete what was built."""
        self._model.close()
