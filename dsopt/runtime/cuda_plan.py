"""The launch plan of a CUDA artifact, read from its manifest and checked before anything reaches a device.

The plan is data: where each buffer lies in one of two allocations (weights, which are copied once, and a workspace that all other
buffers share over time), and which kernels run over which buffers in which order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dsopt.errors import ArtifactError

Space = Literal["weights", "workspace"]


MOST_BLOCKS, MOST_THREADS = 2**31 - 1, 1024
"""Of one launch, along its first dimension. CUDA programming guide, "Technical Specifications per Compute Capability"."""

ITEM_BYTES = {"float32": 4, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1}
"""The dtypes that kernels are written for, and the bytes of one element."""


@dataclass(frozen=True)
class Place:
    """Where a buffer lies: its allocation, the offset in it, and its length, in bytes."""

    space: Space
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class Port:
    """A graph-level input or output: its buffer, shape and dtype."""

    buffer: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Layer:
    """A node of the program: its layer in the user's model, and the port of its result."""

    node: str
    layer: str
    result: Port


@dataclass(frozen=True)
class Launch:
    """One kernel over its buffers, for a node of the program; the first `read_only` arguments are inputs."""

    kernel: str
    node: str
    blocks: int
    threads: int
    arguments: tuple[str, ...]
    read_only: int


@dataclass(frozen=True)
class LaunchPlan:
    """What an executor needs to know, read from a manifest and checked there: every name resolves, every place fits."""

    weights_bytes: int
    workspace_bytes: int
    places: Mapping[str, Place]
    inputs: Mapping[str, Port]
    outputs: Mapping[str, Port]
    launches: tuple[Launch, ...]
    layers: tuple[Layer, ...]

    @staticmethod
    def read(manifest: Mapping[str, Any]) -> LaunchPlan:
        """Read the plan of a manifest. Raises ArtifactError where it contradicts itself."""
        try:
            return _read(manifest)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise damaged(f"{type(error).__name__}: {error}") from error

    @property
    def kernels(self) -> tuple[str, ...]:
        """Return the names of the kernels that are launched, sorted."""
        return tuple(sorted({launch.kernel for launch in self.launches}))


def _read(manifest: Mapping[str, Any]) -> LaunchPlan:
    memory = manifest["memory"]
    sizes = {"weights": _count(memory["weights_bytes"]), "workspace": _count(memory["workspace_bytes"])}
    places = {str(name): _place(str(name), entry, sizes) for name, entry in memory["buffers"].items()}
    launches = tuple(_launch(entry, places) for entry in manifest["launches"])
    states = manifest["states"]
    inputs = {entry["name"]: entry for entry in manifest["inputs"]} | {entry["input"]: entry for entry in states}
    outputs = {entry["name"]: entry for entry in manifest["outputs"]} | {entry["output"]: entry for entry in states}
    ports = manifest["cuda"]["ports"]
    return LaunchPlan(
        sizes["weights"],
        sizes["workspace"],
        places,
        {name: _port(name, ports["inputs"][name], entry, places) for name, entry in inputs.items()},
        {name: _port(name, ports["outputs"][name], entry, places) for name, entry in outputs.items()},
        launches,
        tuple(_layer(entry, places) for entry in manifest["layers"]),
    )


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 48:
        raise ValueError(f"{value!r} is not a number of bytes or threads")
    return value


def _place(name: str, entry: Mapping[str, Any], sizes: Mapping[str, int]) -> Place:
    offset, size_bytes = _count(entry["offset"]), _count(entry["bytes"])
    space = entry["space"]
    if offset + size_bytes > sizes[space]:
        raise ValueError(f"buffer {name} leaves the {space}")
    return Place("weights" if space == "weights" else "workspace", offset, size_bytes)


def _launch(entry: Mapping[str, Any], places: Mapping[str, Place]) -> Launch:
    arguments = tuple(str(name) for name in entry["args"])
    missing = [name for name in arguments if name not in places]
    if missing:
        raise ValueError(f"kernel {entry['kernel']} takes buffers that have no place: {', '.join(missing)}")
    (blocks, *flat), (threads, *rest) = entry["grid"], entry["block"]
    if [*flat, *rest] != [1, 1, 1, 1]:
        raise ValueError(f"kernel {entry['kernel']} is not launched over one dimension")
    if not (1 <= _count(blocks) <= MOST_BLOCKS and 1 <= _count(threads) <= MOST_THREADS):
        raise ValueError(f"kernel {entry['kernel']} is launched over {blocks} blocks of {threads} threads")
    return Launch(str(entry["kernel"]), str(entry["node"]), blocks, threads, arguments, _count(entry["reads"]))


def _port(name: str, buffer: str, entry: Mapping[str, Any], places: Mapping[str, Place]) -> Port:
    shape = tuple(_count(size) for size in entry["shape"])
    port = Port(str(buffer), shape, str(entry["dtype"]))
    if port_bytes(port) != places[port.buffer].size_bytes:
        raise ValueError(f"{name} has {port_bytes(port)} bytes and its buffer {places[port.buffer].size_bytes}")
    return port


def _layer(entry: Mapping[str, Any], places: Mapping[str, Place]) -> Layer:
    return Layer(str(entry["node"]), str(entry["layer"]), _port(str(entry["name"]), str(entry["name"]), entry, places))


def damaged(why: str) -> ArtifactError:
    """Return the error for a plan that contradicts itself or its files."""
    return ArtifactError(
        "DS0709", "the launch plan of this artifact is damaged", why=why, fix="compile the model again"
    )


def port_bytes(port: Port) -> int:
    """Return the bytes of a port's array. Raises KeyError for a dtype that no kernel has."""
    return ITEM_BYTES[port.dtype] * math.prod(port.shape)
