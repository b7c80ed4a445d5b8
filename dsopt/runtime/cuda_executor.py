"""Carry out a launch plan on a device: a GPU, or the host that stands in for one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dsopt.errors import BudgetError, InputError, UsageError
from dsopt.runtime.cuda_plan import Launch, LaunchPlan, Port, damaged
from dsopt.runtime.executor import LayerCost, Profile

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]


class Device(Protocol):
    """Memory, copies and launches in order, with the kernels of one artifact loaded. Pointers are plain integers."""

    name: str

    def allocate(self, size_bytes: int) -> int:
        """Return the address of fresh memory, which lives until `close`. Raises MemoryError."""

    def write(self, pointer: int, content: Bytes) -> None:
        """Copy bytes to the device."""

    def read(self, pointer: int, size_bytes: int) -> Bytes:
        """Copy bytes from the device into a fresh array, after the launches before."""

    def launch(
        self, kernel: str, blocks: int, threads: int, arguments: Sequence[tuple[int, int]], read_only: int
    ) -> None:
        """Run a kernel. arguments: (pointer, bytes) each; the first `read_only` are not written."""

    def synchronize(self) -> None:
        """Wait for the launches before. Raises what went wrong in them."""

    def close(self) -> None:
        """Free everything; a second call does nothing."""


class PlanExecutor:
    """A plan with its memory on a device. Owns the device: `close` frees both, and so does a failure to open."""

    def __init__(self, plan: LaunchPlan, weights: bytes | memoryview, device: Device) -> None:
        """Allocate, and copy the weights. Raises BudgetError with the bytes needed where the device has too few left."""
        self._plan, self._device = plan, device
        self._open = True
        try:
            if len(weights) != plan.weights_bytes:
                raise damaged(f"{len(weights)} bytes of weights where the plan has {plan.weights_bytes}")
            sizes = {"weights": plan.weights_bytes, "workspace": plan.workspace_bytes}
            self._bases = {space: device.allocate(max(size_bytes, 1)) for space, size_bytes in sizes.items()}
            device.write(self._bases["weights"], np.frombuffer(weights, np.uint8))
        except MemoryError as error:
            self.close()
            raise BudgetError(
                "DS0707", f"{device.name} has too little free memory for this model", why=str(error),
                where=f"{plan.weights_bytes:,} bytes of weights and {plan.workspace_bytes:,} of workspace are needed",
                fix="close other sessions or programs on it, or compile with a smaller --dim",
            ) from error  # fmt: skip
        except BaseException:
            self.close()
            raise

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run every launch once. feeds: each input and "state.NAME"; returns outputs and "next.NAME" in fresh arrays."""
        self._begin(feeds)
        for launch in self._plan.launches:
            self._launch(launch)
        self._device.synchronize()
        return {name: self._fetch(port) for name, port in self._plan.outputs.items()}

    def trace(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once and return the result of each layer by the name of its program node."""
        self._begin(feeds)
        ports = {layer.node: layer.result for layer in self._plan.layers}
        results: dict[str, Array] = {}
        for launch in self._plan.launches:
            self._launch(launch)
            if launch.node in ports:  # the last launch of a node leaves its result
                results[launch.node] = self._fetch(ports[launch.node])
        return results

    def profile(self, feeds: Mapping[str, Array]) -> Profile:
        """Run once, one launch at a time, and return the seconds of each layer; a launch alone costs some microseconds."""
        self._begin(feeds)
        self._device.synchronize()
        seconds = dict.fromkeys((layer.node for layer in self._plan.layers), 0.0)
        for launch in self._plan.launches:
            before = time.perf_counter()
            self._launch(launch)
            self._device.synchronize()
            seconds[launch.node] = seconds.get(launch.node, 0.0) + time.perf_counter() - before
        return Profile(
            tuple(LayerCost(layer.node, layer.layer, seconds=seconds[layer.node]) for layer in self._plan.layers)
        )

    def close(self) -> None:
        """Free the memory and the device; a second call does nothing."""
        self._open = False
        self._device.close()

    def _begin(self, feeds: Mapping[str, Array]) -> None:
        if not self._open:
            raise UsageError("DS0710", "this executor is closed", fix="load the artifact again")
        for name, port in self._plan.inputs.items():
            self._device.write(self._locate(port.buffer)[0], _checked(name, feeds, port))

    def _launch(self, launch: Launch) -> None:
        arguments = [self._locate(name) for name in launch.arguments]
        self._device.launch(launch.kernel, launch.blocks, launch.threads, arguments, launch.read_only)

    def _locate(self, name: str) -> tuple[int, int]:
        place = self._plan.places[name]
        return self._bases[place.space] + place.offset, place.size_bytes

    def _fetch(self, port: Port) -> Array:
        return self._device.read(*self._locate(port.buffer)).view(port.dtype).reshape(port.shape)


def _checked(name: str, feeds: Mapping[str, Array], port: Port) -> Bytes:
    if name not in feeds:
        raise InputError("DS0711", f"input {name} is missing", fix="give " + ", ".join([*feeds, name]))
    given = np.asarray(feeds[name])
    if given.shape != port.shape or str(given.dtype) != port.dtype:
        raise InputError(
            "DS0711", f"input {name} is {given.dtype}{list(given.shape)}", fix=f"give {port.dtype}{list(port.shape)}"
        )
    return np.ascontiguousarray(given).reshape(-1).view(np.uint8)
