"""Runs microcontroller artifacts on an emulated core, one emulator run for as many inferences as are given at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dsopt.artifact import Artifact
from dsopt.errors import ArtifactError, CheckError
from dsopt.runtime.arrays import Array
from dsopt.runtime.executor import LayerCost, Profile
from dsopt.runtime.ports import Port
from dsopt.simulate import Simulation, TracePoint, choose_simulator, read_image, simulate
from dsopt.target import core_of

IMAGE = "image.elf"
"""The file of an mcu artifact that is run: the model, linked with the firmware of `dsopt.simulate`."""

_AGAIN = "compile the model again"
_BASE_SECONDS = 60.0
_SLOWEST_MULTIPLY_ADDS_PER_SECOND = 1e6  # soft float, counted in Python
_MOST_SECONDS = 4 * 3600.0


def open_executor(artifact: Artifact, simulator: str | None = None) -> SimulatedExecutor:
    """Prepare to run an artifact. simulator: "unicorn" or "qemu", None for the first that can.

    Raises ArtifactError or ReadError for a damaged artifact, ToolchainError where nothing emulates its core.
    """
    return SimulatedExecutor(artifact, simulator)


class SimulatedExecutor:
    """Runs an image over the graph-level names: inputs and "state.NAME" in, outputs and "next.NAME" out.

    last_simulation: what the latest run or runs cost, None before the first.
    """

    def __init__(self, artifact: Artifact, simulator: str | None = None) -> None:
        manifest = artifact.manifest
        self.last_simulation: Simulation | None = None
        self._core = core_of(artifact.target)
        self._simulator = choose_simulator(self._core, simulator)
        if IMAGE not in artifact.files:
            raise ArtifactError("DS0861", f"the artifact has no {IMAGE}", fix=_AGAIN)
        self._elf = bytes(artifact.files[IMAGE])
        states = manifest.get("states", ())
        self._inputs = [Port.of(entry) for entry in manifest["inputs"]] + [Port.of(entry, "input") for entry in states]
        self._outputs = [Port.of(entry) for entry in manifest["outputs"]] + [
            Port.of(entry, "output") for entry in states
        ]
        self._layers = [entry for entry in manifest.get("layers", ()) if isinstance(entry.get("function"), str)]
        self._seconds = _seconds(self._layers)
        image = read_image(self._elf)
        for kind, ports, spans in (("inputs", self._inputs, image.inputs), ("outputs", self._outputs, image.outputs)):
            named, built = [port.byte_count for port in ports], [span.bytes for span in spans]
            if named != built:
                raise ArtifactError(
                    "DS0862", f"the manifest says that the {kind} have {named} bytes, and the image says {built}",
                    why="the artifact was altered or put together by hand", fix=_AGAIN,
                )  # fmt: skip

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once. Raises CheckError if the image faults or does not finish."""
        return self.run_many([feeds])[0]

    def run_many(self, feeds: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
        """Run once for each of `feeds`, all in one emulator run; no state is carried from one to the next.

        Raises CheckError if the image faults or does not finish.
        """
        if not feeds:
            return []
        return self._results(self._simulate(feeds))

    def trace(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once and return the result of each node that is still in memory when its layer returns, by the node's name."""
        ports: dict[str, tuple[Port, TracePoint]] = {}
        for entry in self._layers:
            where = entry.get("trace")
            if not isinstance(where, Mapping):
                continue
            try:
                port = Port.of({**where, "name": entry["node"]})
                point = TracePoint(entry["function"], str(where["symbol"]), int(where["offset"]), port.byte_count)
            except (KeyError, ValueError, TypeError) as error:
                raise ArtifactError(
                    "DS0862", f"the manifest does not say where {entry['function']!r} leaves its result", fix=_AGAIN
                ) from error
            ports[point.function] = port, point
        # A result is read when the next layer begins, so all layers must be known, not only those with a result.
        done = self._simulate([feeds], self._functions(), [point for _, point in ports.values()])
        return {port.name: port.read(done.traces[name]) for name, (port, _) in ports.items()}

    def profile(self, feeds: Mapping[str, Array]) -> Profile:
        """Return the instructions of one run and of each of its layers; None for layers that the simulator cannot tell apart."""
        done = self._simulate([feeds], self._functions())
        costs = [
            LayerCost(
                str(entry.get("node", "")), str(entry.get("layer", "")),
                done.layers[entry["function"]].instructions if done.layers else None,
            )
            for entry in self._layers
        ]  # fmt: skip
        return Profile(tuple(costs), done.instructions)

    def close(self) -> None:
        """Free what the executor holds: nothing outlives a run."""

    def _functions(self) -> list[str]:
        return list(dict.fromkeys(entry["function"] for entry in self._layers))

    def _simulate(
        self, feeds: Sequence[Mapping[str, Array]], layers: Sequence[str] = (), traces: Sequence[TracePoint] = ()
    ) -> Simulation:
        runs = [[port.write(feed[port.name]) for port in self._inputs] for feed in feeds]
        seconds = min(_BASE_SECONDS + self._seconds * len(feeds), _MOST_SECONDS)
        done = simulate(
            self._elf, self._core, runs=runs, layers=layers, traces=traces, simulator=self._simulator, seconds=seconds
        )
        self.last_simulation = done
        if done.exit_code:
            raise CheckError("DS1007", f"the model returned the code {done.exit_code} instead of a result")
        return done

    def _results(self, done: Simulation) -> list[dict[str, Array]]:
        return [
            {port.name: port.read(content) for port, content in zip(self._outputs, contents, strict=True)}
            for contents in done.outputs
        ]


def _seconds(layers: Sequence[Mapping[str, Any]]) -> float:
    """Return how long one run may take, from the work that the manifest names."""
    work = [entry.get("multiply_adds", 0) for entry in layers]
    return sum(count for count in work if isinstance(count, int) and count > 0) / _SLOWEST_MULTIPLY_ADDS_PER_SECOND
