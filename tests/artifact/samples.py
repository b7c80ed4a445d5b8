"""Artifacts small enough to write out, and what stands in for a runtime."""

from __future__ import annotations

from typing import Any

from dsopt.artifact import Artifact

WEIGHTS = bytes(range(256)) * 40


def manifest(**changes: Any) -> dict[str, Any]:
    """Return the manifest of a model that takes x (batch, 3) and y (2*batch,), with `changes`."""
    return {
        "target": "cpu",
        "inputs": [
            {"name": "x", "shape": ["batch", 3], "dtype": "float32"},
            {"name": "y", "shape": ["2*batch"], "dtype": "int64"},
        ],
        "outputs": [{"name": "output", "shape": ["batch"], "dtype": "float32"}],
        "states": [],
        "dims": {"batch": {"min": 1, "max": 8}},
        "input_tree": {"tuple": [{"tuple": ["x"]}, {"dict": [["y", "y"]]}]},
        "output_tree": "output",
        "argument_names": ["x", "y"],
        **changes,
    }


def artifact(**changes: Any) -> Artifact:
    """Return an artifact with a file in a folder, an empty one, and a large one."""
    files = {"model.onnx": b"not a model", "weights/0.bin": WEIGHTS, "empty": b"", "lock.json": b"{}\n"}
    return Artifact(manifest(**changes), files)
