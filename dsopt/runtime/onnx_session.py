"""Models in ONNX Runtime: opening them from files of an artifact, running them, and what its errors mean."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np
import onnxruntime as ort

from dsopt.artifact import Artifact
from dsopt.errors import ArtifactError, InputError, UsageError
from dsopt.runtime.sparse_cpu import cpu_flags

MODEL, DATA = "model.onnx", "model.onnx.data"
"""The files of a cpu artifact: the graph, and the weights where they are large."""

_LOG_FATAL = 4  # of ONNX Runtime's severities 0 to 4: its errors are raised as well, and need not be printed
_SLOWER_FUSIONS = ["SkipLayerNormFusion"]  # its kernel takes 3 to 15 times as long as Add and LayerNormalization (1.32)
_LARGE_BYTES = 1 << 26  # a model above this is read by ONNX Runtime from its own file, without a copy in Python


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


def run_model(
    session: Any, outputs: Sequence[str], feeds: Mapping[str, np.ndarray[Any, Any]]
) -> list[np.ndarray[Any, Any]]:
    """Run once. Raises InputError if ONNX Runtime fails on these values."""
    try:
        results: list[np.ndarray[Any, Any]] = session.run(outputs, feeds, None)
    except ORT_ERRORS as problem:
        raise run_failed(problem) from problem
    return results


def run_failed(problem: Exception) -> InputError:
    """Return what a failure of ONNX Runtime means to the user."""
    return InputError(
        "DS0852",
        "ONNX Runtime could not run the model on these inputs",
        why=_sentence(problem),
        fix="check the inputs' shapes and indices against the model's",
    )


def _has_vnni() -> bool:
    """Tell whether this CPU is known to add products of bytes in int32. Where it is not, exactness costs a seventh of the time."""
    return not cpu_flags().isdisjoint(("avx512_vnni", "avx_vnni"))


def open_model(
    artifact: Artifact, threads: int, extra_outputs: Sequence[str] = (), profile_to: str = "", file: str = MODEL,
    weights: Mapping[str, bytes] | None = None,
) -> Any:  # fmt: skip
    """Return a session of ONNX Runtime. Raises ArtifactError.

    file: `MODEL`, or a segment of it, whose weights lie in the model.  weights: what `read_weights` gave, for several segments.
    """
    options = _options(threads, profile_to)
    if file not in artifact.files:
        raise ArtifactError("DS0853", f"the artifact has no {file}", fix="compile the model again for cpu")
    if file != MODEL:
        # There is a session for each segment; the threads of one must not spin while another runs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        _share_memory()
        options.add_session_config_entry("session.use_env_allocators", "1")
    beside = [name for name in (MODEL, DATA) if name in artifact.files and name != file]
    path = artifact.path_of(file)
    try:
        if path is not None and not extra_outputs and (beside or path.stat().st_size > _LARGE_BYTES):
            for name in beside:
                artifact.path_of(name)  # compares its hash
            return _session(str(path), options)
        if beside:
            contents = [weights[name] if weights else artifact.files[name] for name in beside]
            options.add_external_initializers_from_files_in_memory(beside, contents, [len(each) for each in contents])
        return _session(artifact.files[file] + with_outputs(extra_outputs), options)
    except ORT_ERRORS as problem:
        raise ArtifactError(
            "DS0854",
            "ONNX Runtime cannot load this artifact's model",
            why=_sentence(problem),
            fix=f"compile the model again, or update onnxruntime ({ort.__version__} is installed)",
        ) from problem


@cache
def _share_memory() -> None:
    """Give the segments of all models in this process one memory for what they compute.

    With a memory each, what one segment leaves in the CPU's cache is of no use to the next: 5 % of the time of a small encoder.
    """
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    with suppress(*ORT_ERRORS):  # the program around has done so before
        ort.create_and_register_allocator(memory, None)


def read_weights(artifact: Artifact, has_paths: bool = False) -> dict[str, bytes]:
    """Read the files that hold weights, once for all segments. has_paths: ONNX Runtime may read them itself where they lie on disk."""
    if has_paths and artifact.path_of(MODEL) is not None:
        return {}
    return {name: artifact.files[name] for name in (MODEL, DATA) if name in artifact.files}


def _options(threads: int, profile_to: str) -> Any:
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
    return options


def _session(model: str | bytes, options: Any) -> Any:
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"], disabled_optimizers=_SLOWER_FUSIONS)


def _ort_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that ONNX Runtime raises; each of its status codes has a class of its own."""
    state = ort.capi.onnxruntime_pybind11_state
    found = [value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)]
    return (*found, RuntimeError, ValueError)


ORT_ERRORS = _ort_errors()
"""What ONNX Runtime raises."""


def _sentence(problem: Exception) -> str:
    """Return ONNX Runtime's message without its code and source location."""
    text = str(problem).strip().splitlines()
    return re.sub(r"^.*\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text[0])[:500] if text else type(problem).__name__


def differs(what: str) -> ArtifactError:
    """Return the error for an artifact whose model is not the one of its manifest."""
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
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def varint(value: int) -> bytes:
    """Encode a whole number as protobuf does, seven bits a byte."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
