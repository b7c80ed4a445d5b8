"""Runs segments of a model in ONNX Runtime and native kernels between them, on arrays that pass from one to the other without copies."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from dsopt.artifact import Artifact
from dsopt.runtime.executor import LayerCost, Profile
from dsopt.runtime.onnx_names import layer_names, result_names
from dsopt.runtime.onnx_profile import PROFILED_RUNS, WARM_UP_RUNS, read_profile
from dsopt.runtime.onnx_session import differs, open_model, read_weights, run_model
from dsopt.runtime.segment_plan import KernelFiles, KernelStep, Plan, SegmentStep, ViewStep

Array = npt.NDArray[Any]
Arrays = dict[str, Array]


class SegmentExecutor:
    """A loaded model with native kernels: runs on numpy arrays by graph-level names, as `OnnxExecutor` does.

    Raises ToolchainError if a kernel has no library for this CPU, ArtifactError if something cannot be loaded.
    """

    def __init__(self, artifact: Artifact, plan: Plan, threads: int) -> None:
        self._artifact, self._plan, self._threads = artifact, plan, threads
        self._names = result_names(artifact)
        self._kernels = [load_kernel(artifact, each, threads) for each in plan.kernels]
        weights = read_weights(artifact, has_paths=True)
        self._sessions = {step.file: self._open(step, weights) for step in self._segments()}
        self._frees = _frees(plan)
        self._copied = _copied(plan)

    def run(self, feeds: Mapping[str, Array]) -> Arrays:
        """Run once. Raises InputError if ONNX Runtime fails on these values."""
        values = self._run(feeds, self._sessions)
        results = {}
        for name, output in zip(self._names, self._plan.outputs, strict=True):
            results[name] = values[output].copy() if output in self._copied else np.ascontiguousarray(values[output])
        return results

    def trace(self, feeds: Mapping[str, Array]) -> Arrays:
        """Run once and return the value of each layer by the name of its program node, to find the first that differs.

        Opens the segments anew with all layers as outputs, so that what ONNX Runtime fused is computed apart here.
        """
        sessions, layers = {}, {}
        weights = read_weights(self._artifact)
        for step in self._segments():
            layers[step.file] = list(dict.fromkeys([*step.outputs, *step.layers]))
            extra = [name for name in layers[step.file] if name not in step.outputs]
            sessions[step.file] = open_model(self._artifact, self._threads, extra, file=step.file, weights=weights)
        values = self._run(feeds, sessions, layers, is_all_kept=True)
        return {node: values[name] for name, node in layer_names(self._artifact) if name in values}

    def profile(self, feeds: Mapping[str, Array]) -> Profile:
        """Run several times with clocks on, ONNX Runtime's own in segments, and return each layer's median."""
        clock: dict[str, list[float]] = {}
        weights = read_weights(self._artifact, has_paths=True)
        with tempfile.TemporaryDirectory(prefix="dsopt-") as folder:
            sessions = {
                step.file: open_model(
                    self._artifact,
                    self._threads,
                    profile_to=f"{folder}/profile{number}",
                    file=step.file,
                    weights=weights,
                )
                for number, step in enumerate(self._segments())
            }
            for _ in range(WARM_UP_RUNS + PROFILED_RUNS):
                self._run(feeds, sessions, clock=clock)
            layers = self._artifact.manifest["layers"]
            costs: list[LayerCost] = []
            for step in self._plan.steps:
                if isinstance(step, SegmentStep):
                    path = Path(sessions[step.file].end_profiling())
                    costs += read_profile(path, layers, WARM_UP_RUNS)
                elif isinstance(step, KernelStep):
                    costs.append(_kernel_cost(step.output, layers, clock[step.output][WARM_UP_RUNS:]))
        return Profile(tuple(costs))

    def close(self) -> None:
        """Free the model."""
        for kernel in self._kernels:
            getattr(kernel, "close", _nothing)()
        self._kernels, self._sessions = [], {}

    def _segments(self) -> list[SegmentStep]:
        return [step for step in self._plan.steps if isinstance(step, SegmentStep)]

    def _open(self, step: SegmentStep, weights: Mapping[str, bytes]) -> Any:
        session = open_model(self._artifact, self._threads, file=step.file, weights=weights)
        for what, names, found in (
            ("input", step.inputs, session.get_inputs()), ("output", step.outputs, session.get_outputs()),
        ):  # fmt: skip
            if different := sorted(set(names) ^ {value.name for value in found}):
                raise differs(f"{step.file} and the manifest differ in the {what} {different[0]!r}")
        return session

    def _run(
        self, feeds: Mapping[str, Array], sessions: Mapping[str, Any], outputs: Mapping[str, list[str]] | None = None,
        clock: dict[str, list[float]] | None = None, is_all_kept: bool = False,
    ) -> Arrays:  # fmt: skip
        """Return the arrays by name that are left at the end. outputs: of segments, where other ones than those of the plan."""
        values = dict(feeds)
        for step, free in zip(self._plan.steps, self._frees, strict=True):
            if isinstance(step, SegmentStep):
                wanted = outputs[step.file] if outputs is not None else step.outputs
                given = {name: np.ascontiguousarray(values[name]) for name in step.inputs}
                values.update(zip(wanted, run_model(sessions[step.file], wanted, given), strict=True))
            elif isinstance(step, ViewStep):
                values[step.name] = _viewed(values[step.of], step)
            else:
                begin = perf_counter()
                values[step.output] = self._attend(step, values)
                if clock is not None:
                    clock.setdefault(step.output, []).append(perf_counter() - begin)
            if not is_all_kept:
                for name in free:
                    del values[name]
        return values

    def _attend(self, step: KernelStep, values: Mapping[str, Array]) -> Array:
        query, key, value, *bias = (values[name] for name in step.inputs)
        out = np.empty((*query.shape[:3], value.shape[3]), np.float32)
        if step.is_rows:
            batch, heads, queries, width = out.shape
            out = np.empty((batch, queries, heads, width), np.float32).transpose(0, 2, 1, 3)
        added = None
        if bias:
            added = bias[0][:, :, 0]
            added = np.broadcast_to(added, (*added.shape[:2], key.shape[2]))
        result: Array = self._kernels[step.kernel].run(query, key, value, added, out)
        return result


def load_kernel(artifact: Artifact, files: KernelFiles, threads: int) -> Any:
    """Load a kernel's libraries: from the disk where they lie there, after their hashes were compared.

    threads: 0 for one a core. The module is imported only for artifacts that have kernels.
    """
    from dsopt.runtime.sparse_call import KernelConfig
    from dsopt.runtime.sparse_kernel import SparseKernel

    libraries = {level: artifact.path_of(name) or artifact.files[name] for level, name in files.libraries.items()}
    return SparseKernel(KernelConfig(**files.config), libraries, threads or _cores())


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _viewed(array: Array, step: ViewStep) -> Array:
    try:
        if step.part:
            axis, *ends = step.part
            return array[(slice(None),) * axis + ((slice(*ends) if len(ends) == 2 else ends[0]),)]
        sizes = [array.shape[axis] if size == 0 else size for axis, size in enumerate(step.reshape)]
        viewed: Array = array.transpose(step.transpose) if step.transpose else array.reshape(sizes)
    except (ValueError, IndexError) as problem:
        raise differs(
            f"{step.of} has the shape {list(array.shape)}, which the view {step.name} does not fit"
        ) from problem
    return viewed


def _frees(plan: Plan) -> list[tuple[str, ...]]:
    """Return for each step the names that nothing reads afterwards."""
    later = set(plan.outputs)
    found: list[tuple[str, ...]] = []
    for step in reversed(plan.steps):
        reads = {step.of} if isinstance(step, ViewStep) else set(step.inputs)
        found.append(tuple(sorted(reads - later)))
        later |= reads
    return found[::-1]


def _copied(plan: Plan) -> frozenset[str]:
    """Return the outputs that must be copied, because what they are a view of is an output as well, or an input."""
    roots: dict[str, str] = {}
    made: set[str] = set()
    for step in plan.steps:
        if isinstance(step, ViewStep):
            roots[step.name] = roots.get(step.of, step.of)
        else:
            made.update(step.outputs if isinstance(step, SegmentStep) else [step.output])
    seen: set[str] = set()
    copied = set()
    for name in plan.outputs:
        root = roots.get(name, name)
        if root in seen or root not in made:
            copied.add(name)
        seen.add(root)
    return frozenset(copied)


def _kernel_cost(output: str, layers: Any, seconds: list[float]) -> LayerCost:
    found: Mapping[str, Any] = next((layer for layer in layers if layer["name"] == output), {})
    node = str(found.get("node", output))
    return LayerCost(node, str(found.get("layer", "")) or node, seconds=median(seconds))


def _nothing() -> None:
    """Do nothing, for kernels without anything to close."""
