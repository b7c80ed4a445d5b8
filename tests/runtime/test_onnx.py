"""Running cpu artifacts: agreement, tracing, threads, and damaged artifacts."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from dsopt.artifact import Artifact
from dsopt.errors import ArtifactError, InputError, UsageError
from dsopt.ir import Program
from dsopt.runtime.onnx import open_executor, with_outputs
from tests.backends.cpu.cases import module
from tests.backends.cpu.harness import assert_close, emit, feeds, program_of


@pytest.fixture(scope="module")
def program() -> Program:
    net = module(
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    )
    return program_of(net, (torch.randn(4, 3, 8, 8),), (torch.randn(6, 3, 8, 8),))


@pytest.fixture(scope="module")
def artifact(program: Program) -> Artifact:
    return emit(program)


INPUTS = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)),)


def test_every_layer_can_be_traced(program: Program, artifact: Artifact) -> None:
    executor = open_executor(artifact, threads=1)
    traced, expected = executor.trace(feeds(program, INPUTS)), program.trace(*INPUTS)
    assert list(traced) == ["conv2d", "batch_norm", "relu", "flatten", "linear"]
    for name, value in traced.items():
        assert_close([torch.from_numpy(value)], [expected[name]])


def test_threads_do_not_change_the_result(program: Program, artifact: Artifact) -> None:
    one, two = (open_executor(artifact, threads=count).run(feeds(program, INPUTS)) for count in (1, 2))
    np.testing.assert_array_equal(one["output"], two["output"])


@pytest.mark.parametrize("threads", [0, -1, 5000])
def test_a_wrong_number_of_threads_is_refused(artifact: Artifact, threads: int) -> None:
    with pytest.raises(UsageError, match="DS0851"):
        open_executor(artifact, threads=threads)


def test_the_environment_sets_the_threads(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSOPT_THREADS", "many")
    with pytest.raises(UsageError, match="'many'"):
        open_executor(artifact)
    monkeypatch.setenv("DSOPT_THREADS", "1")
    open_executor(artifact).close()


def test_an_artifact_without_a_model_is_refused(artifact: Artifact) -> None:
    with pytest.raises(ArtifactError, match="DS0853"):
        open_executor(replace(artifact, files={}))


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.9])
def test_a_truncated_model_is_refused(artifact: Artifact, cut: float) -> None:
    content = artifact.files["model.onnx"]
    with pytest.raises(ArtifactError, match="DS0854"):
        open_executor(replace(artifact, files={"model.onnx": content[: int(len(content) * cut)]}))


def test_a_model_of_another_build_is_refused(artifact: Artifact) -> None:
    other = emit(program_of(torch.add, (torch.ones(2), torch.ones(2))))
    with pytest.raises(ArtifactError, match="DS0855"):
        open_executor(replace(artifact, files=other.files))


def test_an_index_out_of_its_table_is_an_input_error_that_names_the_layer() -> None:
    program = program_of(module(lambda: nn.Sequential(nn.Embedding(5, 3))), (torch.zeros(2, dtype=torch.int64),))
    executor = open_executor(emit(program), threads=1)
    with pytest.raises(InputError, match=r"(?s)DS0852.*0/embedding"):
        executor.run(feeds(program, (torch.tensor([1, 99]),)))


def test_outputs_are_added_to_a_serialized_model_without_the_onnx_package(artifact: Artifact) -> None:
    names = ["0/conv2d", "n" * 300]
    read = onnx.load_from_string(artifact.files["model.onnx"] + with_outputs(names))
    assert [value.name for value in read.graph.output] == ["output", *names]
    assert len(read.graph.node) == len(onnx.load_from_string(artifact.files["model.onnx"]).graph.node)
    assert with_outputs([]) == b""


def test_running_loads_neither_torch_nor_onnx(artifact: Artifact, tmp_path: Path) -> None:
    artifact.save(tmp_path / "model.dsopt")
    code = (
        "import sys, numpy as np\n"
        "from dsopt.artifact import load_artifact\n"
        "from dsopt.runtime.onnx import open_executor\n"
        f"executor = open_executor(load_artifact({str(tmp_path / 'model.dsopt')!r}), threads=1)\n"
        "print(executor.run({'input': np.ones((3, 3, 8, 8), np.float32)})['output'].shape)\n"
        "executor.close()\n"
        "assert not {'torch', 'onnx', 'tvm'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "(3, 5)", "")
