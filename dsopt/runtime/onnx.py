"""Runs cpu artifacts with ONNX Runtime. Imports neither torch nor onnx."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from dsopt.artifact import Artifact
from dsopt.errors import ArtifactError, InputError, UsageError
from dsopt.runtime.executor import Profile
from dsopt.runtime.onnx_profile import read_profile

MODEL, DATA = "model.onnx", "model.onnx.data"
"""The files of a cpu artifact: the graph, and the weights where they are large."""

_LOG_FATAL = 4  # of ONNX Runtime's severities 0 to 4: its errors are raised as well, and need not be printed
_SLOWER_FUSIONS = ["SkipLayerNormFusion"]  # its kernel takes 3 to 15 times as long as Add and LayerNormalization (1.32)
_WARM_UP_RUNS, _PROFILED_RUNS = 3, 15
_LARGE_BYTES = 1 << 26  # a model above this is read by ONNX Runtime from its own file, without a copy in Python


def open_executor(artifact: Artifact, threads: int | None = None) -> OnnxExecutor:
    """Load the model.

    threads: of one operator; None takes the environment variable DSOPT_THREADS, and without it one for each core.
    Raises ArtifactError if ONNX Runtime refuses the model, UsageError if `threads` is not a number of threads.
    """
    return OnnxExecutor(artifact, thread_count(threads))


def thread_count(threads: int | None) -> int:
    """Return the number of threads to use; 0 lets ONNX Runtime choose. Raises UsageError."""
    given: Any = os.environ.get("DSOPT_THREADS", "") if threads is None else threads
    if given == "":
        return 0
    try:
        count = int(given)
    except ValueError:
        count = -1
    if not 1 <= count <= 1024:
        raise UsageError(
            "DS0851", f"{given!r} is not a number of threads", fix="give 1 to 1024, or nothing for all cores"
        )
    return count


class OnnxExecutor:
    """A loaded model: runs on numpy arrays by graph-level names (inputs and "state.NAME" -> outputs and "next.NAME")."""

    def __init__(self, artifact: Artifact, threads: int) -> None:
        self._artifact, self._threads = artifact, threads
        self._session = _open(artifact, threads)
        # The wrapper around this object checks the inputs again, which takes a tenth of the time of a small network.
        self._native = getattr(self._session, "_sess", self._session)
        self._names = _result_names(artifact)
        self._outputs = [output.name for output in self._session.get_outputs()]
        if len(self._outputs) != len(self._names):
            raise _differs(f"model.onnx has {len(self._outputs)} outputs, the manifest {len(self._names)}")
        self._inputs = _input_names(artifact)
        missing = sorted(set(self._inputs) ^ {value.name for value in self._session.get_inputs()})
        if missing:
            raise _differs(f"model.onnx and the manifest differ in the input {missing[0]!r}")

    def run(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        """Run once. Raises InputError if ONNX Runtime fails on these values."""
        try:
            results = self._native.run(self._outputs, feeds, None)
        except _ORT_ERRORS as problem:
            raise _run_failed(problem) from problem
        return dict(zip(self._names, results))  # noqa: B905 equal since __init__, and strict= takes 0.3 us

    def trace(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        """Run once and return the value of each layer by the name of its program node, to find the first that differs.

        Opens the model anew with all layers as outputs, so that what ONNX Runtime fused is computed apart here.
        """
        layers = _layer_names(self._artifact)
        extra = [name for name, _ in layers if name not in self._outputs]
        session = _open(self._artifact, self._threads, list(dict.fromkeys(extra)))
        wanted = list(dict.fromkeys(name for name, _ in layers))
        values = dict(zip(wanted, _run(session, wanted, feeds), strict=True))
        return {node: values[name] for name, node in layers}

    def profile(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> Profile:
        """Run several times with ONNX Runtime's own clock on, and return each layer's median."""
        with tempfile.TemporaryDirectory(prefix="dsopt-") as folder:
            session = _open(self._artifact, self._threads, profile_to=f"{folder}/profile")
            for _ in range(_WARM_UP_RUNS + _PROFILED_RUNS):
                _run(session, self._outputs, feeds)
            path = Path(session.end_profiling())
            return Profile(read_profile(path, self._artifact.manifest["layers"], _WARM_UP_RUNS))

    def close(self) -> None:
        """Free the model."""
        del self._session, self._native


def _layer_names(artifact: Artifact) -> list[tuple[str, str]]:
    """Return tensor name and node name of each layer."""
    try:
        return [(str(layer["name"]), str(layer["node"])) for layer in artifact.manifest.get("layers", [])]
    except KeyError as problem:
        raise _differs(f"a layer of the manifest has no {problem}") from problem


def _input_names(artifact: Artifact) -> list[str]:
    return [
        *(str(item["name"]) for item in artifact.manifest["inputs"]),
        *(str(item["input"]) for item in artifact.manifest.get("states", [])),
    ]


def _result_names(artifact: Artifact) -> list[str]:
    """Return the outputs' names in the model's order; ONNX may know one by another name, because an input has its name."""
    return [
        *(str(item["name"]) for item in artifact.manifest["outputs"]),
        *(str(item["output"]) for item in artifact.manifest.get("states", [])),
    ]


def _run(session: Any, outputs: Sequence[str], feeds: Mapping[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    try:
        results: list[np.ndarray[Any, Any]] = session.run(outputs, feeds, None)
    except _ORT_ERRORS as problem:
        raise _run_failed(problem) from problem
    return results


def _run_failed(problem: Exception) -> InputError:
    return InputError(
        "DS0852",
        "ONNX Runtime could not run the model on these inputs",
        why=_sentence(problem),
        fix="check the inputs' shapes and indices against the model's",
    )


@cache
def _has_vnni() -> bool:
    """Tell whether this CPU is known to add products of bytes in int32. Where it is not, exactness costs a seventh of the time."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return "avx512_vnni" in flags or "avx_vnni" in flags


def _open(artifact: Artifact, threads: int, extra_outputs: Sequence[str] = (), profile_to: str = "") -> Any:
    options = ort.SessionOptions()
    options.enable_profiling = bool(profile_to)
    options.profile_file_prefix = profile_to
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _LOG_FATAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    if not _has_vnni():  # products of unsigned and signed bytes would be added in saturating int16
        options.add_session_config_entry("session.x64quantprecision", "1")
    if MODEL not in artifact.files:
        raise ArtifactError("DS0853", f"the artifact has no {MODEL}", fix="compile the model again for cpu")
    path = artifact.path_of(MODEL)
    has_data = DATA in artifact.files
    try:
        if path is not None and not extra_outputs and (has_data or path.stat().st_size > _LARGE_BYTES):
            if has_data:
                artifact.path_of(DATA)  # compares its hash
            return _session(str(path), options)
        if has_data:
            weights = artifact.files[DATA]
            options.add_external_initializers_from_files_in_memory([DATA], [weights], [len(weights)])
        model = artifact.files[MODEL] + with_outputs(extra_outputs)
        return _session(model, options)
    except _ORT_ERRORS as problem:
        raise ArtifactError(
            "DS0854",
            "ONNX Runtime cannot load this artifact's model",
            why=_sentence(problem),
            fix=f"compile the model again, or update onnxruntime ({ort.__version__} is installed)",
        ) from problem


def _session(model: str | bytes, options: Any) -> Any:
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"], disabled_optimizers=_SLOWER_FUSIONS)


def _ort_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that ONNX Runtime raises; each of its status codes has a class of its own."""
    state = ort.capi.onnxruntime_pybind11_state
    found = [value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)]
    return (*found, RuntimeError, ValueError)


_ORT_ERRORS = _ort_errors()


def _sentence(problem: Exception) -> str:
    """Return ONNX Runtime's message without its code and source location."""
    text = str(problem).strip().splitlines()
    return re.sub(r"^.*\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text[0])[:500] if text else type(problem).__name__


def _differs(what: str) -> ArtifactError:
    return ArtifactError(
        "DS0855", what, why="the artifact was altered or put together by hand", fix="compile the model again"
    )


# ---- more outputs for a serialized model, without the onnx package ----


def with_outputs(names: Sequence[str]) -> bytes:
    """Return bytes that, appended to a serialized ModelProto, add graph outputs of these names.

    In protobuf's encoding a message followed by another one of its type reads as the two merged: repeated fields are joined.
    So this is a ModelProto that holds a graph (field 7) that holds only outputs (field 12), each a ValueInfoProto with a name
    (field 1): https://protobuf.dev/programming-guides/encoding/#last-one-wins. ONNX Runtime infers their types.
    """
    if not names:
        return b""
    outputs = b"".join(_field(12, _field(1, name.encode())) for name in names)
    return _field(7, outputs)


def _field(number: int, payload: bytes) -> bytes:
    """Encode a length-delimited field (wire type 2)."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
