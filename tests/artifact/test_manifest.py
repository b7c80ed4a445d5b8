"""A manifest that contradicts itself is refused, when it is written and when it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dsopt.artifact import Artifact
from dsopt.artifact.manifest import name_problem
from dsopt.errors import ArtifactError
from tests.artifact.samples import artifact, manifest

TENSOR = {"name": "x", "shape": [1], "dtype": "float32"}
CALL = {"tuple": [{"tuple": ["x"]}, {"dict": []}]}
STATE = {**TENSOR, "name": "s", "input": "state.s", "output": "next.s", "file": "model.onnx"}

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no target": ({"target": None}, "its target is None"),
    "no inputs": ({"inputs": None}, "'inputs' is no list"),
    "input without name": ({"inputs": [{"shape": [1], "dtype": "float32"}]}, "has the name 'None'"),
    "two inputs of one name": ({"inputs": [TENSOR, TENSOR]}, "two of its inputs have one name"),
    "unknown dtype": ({"inputs": [{**TENSOR, "dtype": "object"}]}, "has the dtype 'object'"),
    "negative size": ({"inputs": [{**TENSOR, "shape": [-1]}]}, "is no size"),
    "boolean size": ({"inputs": [{**TENSOR, "shape": [True]}]}, "is no size"),
    "huge size": ({"inputs": [{**TENSOR, "shape": [1 << 60]}]}, "is no size"),
    "unknown dim": ({"inputs": [{**TENSOR, "shape": ["seq"]}]}, "uses the dim 'seq' that is not described"),
    "no expression": ({"inputs": [{**TENSOR, "shape": ["__import__('os')"]}]}, "cannot be read"),
    "dim upside down": ({"dims": {"batch": {"min": 2, "max": 1}}}, "has the range 2 to 1"),
    "dim of another name": ({"dims": {"a b": {"min": 1, "max": None}}}, "is no name of a dim"),
    "tree without the input": ({"input_tree": {"tuple": [{"tuple": ["x"]}, {"dict": []}]}}, "'input_tree' names"),
    "tree that is no call": ({"inputs": [TENSOR], "input_tree": "x"}, "is no call"),
    "tree of another kind": ({"output_tree": {"set": []}}, "'output_tree' is no tree of names"),
    "tree of numbers": ({"output_tree": {"dict": [[1]]}}, "'output_tree' is no tree of names"),
    "argument names": ({"argument_names": [1]}, "'argument_names' is no list of names"),
    "state without file": ({"states": [{**STATE, "file": "gone.npy"}]}, "not among its files"),
    "state over an input": ({"states": [{**STATE, "input": "x"}]}, "has the input 'x'"),
    "varying state": ({"states": [{**STATE, "shape": ["batch"]}]}, "uses the dim 'batch'"),
    "layers": ({"layers": ["conv"]}, "'layers' is no list of records"),
    "memory": ({"memory": 5}, "'memory' is no record"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_manifest_that_contradicts_itself_is_refused(case: str, tmp_path: Path) -> None:
    changes, message = WRONG[case]
    with pytest.raises(ArtifactError, match="DS0804") as caught:
        artifact(**changes).save(tmp_path / "a")
    assert message in caught.value.what
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["", "/a", "../a", "a/../b", "a//b", "a\\b", "C:a", "a\0b", ".hidden", "manifest.json", "Manifest.JSON", "a/" * 20 + "b", 5]
)  # fmt: skip
def test_names_that_leave_the_artifact_are_refused(name: object) -> None:
    assert name_problem(name)


@pytest.mark.parametrize(
    "name", ["model.onnx", "weights/0.bin", "kernels.sm_90.cubin", "a/b/c", "_x", "model.onnx.data"]
)
def test_plain_names_are_taken(name: str) -> None:
    assert name_problem(name) == ""


@pytest.mark.parametrize("files", [{"a": b"", "A": b""}, {"a": b"", "a/b": b""}])
def test_files_that_some_systems_cannot_hold_together_are_refused(files: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="DS0804"):
        Artifact(manifest(), files).save(tmp_path / "a")
