"""Runs cpu artifacts with ONNX Runtime, and with native kernels where they have some. Imports neither torch nor onnx."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dsopt.artifact import Artifact
from dsopt.errors import ToolchainError
from dsopt.runtime.executor import Profile
from dsopt.runtime.onnx_names import input_names, layer_names, result_names
from dsopt.runtime.onnx_profile import PROFILED_RUNS, WARM_UP_RUNS, read_profile
from dsopt.runtime.onnx_session import (
    DATA,
    MODEL,
    ORT_ERRORS,
    differs,
    open_model,
    run_failed,
    run_model,
    thread_count,
    with_outputs,
)
from dsopt.runtime.segment_plan import read_plan
from dsopt.runtime.segments import SegmentExecutor

__all__ = ["DATA", "MODEL", "OnnxExecutor", "open_executor", "open_portable", "with_outputs"]


def open_executor(artifact: Artifact, threads: int | None = None) -> OnnxExecutor | SegmentExecutor:
    """Load the model; its native kernels too, where it has some for this CPU and DSOPT_NATIVE is not 0.

    Native kernels are machine code from the artifact, run after their hashes were compared with the manifest: who does not
    trust the maker of an artifact sets DSOPT_NATIVE=0, and the same results come from standard operators, more slowly.
    threads: of one operator; None takes the environment variable DSOPT_THREADS, and without it one for each core.
    Raises ArtifactError if ONNX Runtime refuses the model, UsageError if `threads` is not a number of threads.
    """
    if os.environ.get("DSOPT_NATIVE") != "0":
        plan = read_plan(artifact)
        if plan is not None:
            try:
                return SegmentExecutor(artifact, plan, thread_count(threads))
            except ToolchainError:  # none of the kernels is for this CPU
                pass
    return open_portable(artifact, threads)


def open_portable(artifact: Artifact, threads: int | None = None) -> OnnxExecutor:
    """Load the model alone, as any runtime of ONNX would. Raises as `open_executor` does."""
    return OnnxExecutor(artifact, thread_count(threads))


class OnnxExecutor:
    """A loaded model: runs on numpy arrays by graph-level names (inputs and "state.NAME" -> outputs and "next.NAME")."""

    def __init__(self, artifact: Artifact, threads: int) -> None:
        self._artifact, self._threads = artifact, threads
        self._session = open_model(artifact, threads)
        # The wrapper around this object checks the inputs again, which takes a tenth of the time of a small network.
        self._native = getattr(self._session, "_sess", self._session)
        self._names = result_names(artifact)
        self._outputs = [output.name for output in self._session.get_outputs()]
        if len(self._outputs) != len(self._names):
            raise differs(f"model.onnx has {len(self._outputs)} outputs, the manifest {len(self._names)}")
        self._inputs = input_names(artifact)
        missing = sorted(set(self._inputs) ^ {value.name for value in self._session.get_inputs()})
        if missing:
            raise differs(f"model.onnx and the manifest differ in the input {missing[0]!r}")

    def run(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        """Run once. Raises InputError if ONNX Runtime fails on these values."""
        try:
            results = self._native.run(self._outputs, feeds, None)
        except ORT_ERRORS as problem:
            raise run_failed(problem) from problem
        return dict(zip(self._names, results))  # noqa: B905 equal since __init__, and strict= takes 0.3 us

    def trace(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        """Run once and return the value of each layer by the name of its program node, to find the first that differs.

        Opens the model anew with all layers as outputs, so that what ONNX Runtime fused is computed apart here.
        """
        layers = layer_names(self._artifact)
        extra = [name for name, _ in layers if name not in self._outputs]
        session = open_model(self._artifact, self._threads, list(dict.fromkeys(extra)))
        wanted = list(dict.fromkeys(name for name, _ in layers))
        values = dict(zip(wanted, run_model(session, wanted, feeds), strict=True))
        return {node: values[name] for name, node in layers}

    def profile(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> Profile:
        """Run several times with ONNX Runtime's own clock on, and return each layer's median."""
        with tempfile.TemporaryDirectory(prefix="dsopt-") as folder:
            session = open_model(self._artifact, self._threads, profile_to=f"{folder}/profile")
            for _ in range(WARM_UP_RUNS + PROFILED_RUNS):
                run_model(session, self._outputs, feeds)
            path = Path(session.end_profiling())
            return Profile(read_profile(path, self._artifact.manifest["layers"], WARM_UP_RUNS))

    def close(self) -> None:
        """Free the model."""
        del self._session, self._native
