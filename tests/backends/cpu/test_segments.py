"""Artifacts with native kernels: how they are cut, run, traced, timed, checked, stored, and read from strangers."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from dsopt.artifact import Artifact, load_artifact
from dsopt.backends.check import check_against
from dsopt.backends.cpu import CpuBackend, model
from dsopt.errors import ArtifactError, CheckError, InputError, ToolchainError
from dsopt.ir import Program
from dsopt.runtime import load
from dsopt.runtime.onnx import OnnxExecutor, open_executor
from dsopt.runtime.segments import SegmentExecutor
from tests.backends.cpu.attentions import ATTENTIONS, Attend
from tests.backends.cpu.cases import module
from tests.backends.cpu.harness import assert_close, emit, feeds, program_of, run
from tests.backends.cpu.stand_in import LEVELS, SparseKernel, install


class Block(nn.Module):
    """Attention as transformers have it: three projections, heads split off, joined again, and a residual."""

    def __init__(self, heads: int = 2, width: int = 32, budget: int = 9, causal: str = "none") -> None:
        super().__init__()
        self.heads, self.arguments = heads, (causal, None, [float(budget)], "keys", 16, 0)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (each(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (self.q, self.k, self.v))
        y = torch.ops.dsopt.sparse_attention(q, k, v, mask, *self.arguments)
        result: Tensor = x + self.out(y.transpose(1, 2).flatten(2))
        return result


class Net(nn.Module):
    """Two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Block(), Block(causal="start", budget=5)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor, keep: Tensor) -> dict[str, Tensor]:
        mask = (keep > 0)[:, None, None]
        hidden = self.second(self.first(x, mask))
        return {"y": self.head(hidden).softmax(-1), "hidden": hidden}


def net_inputs(batch: int) -> tuple[Tensor, Tensor]:
    make = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 80, 32, generator=make), torch.randn(batch, 80, generator=make) + 1


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> type[SparseKernel]:
    found = install(monkeypatch)
    monkeypatch.delenv("DSOPT_NATIVE", raising=False)
    return found


@pytest.fixture(scope="module")
def program() -> Program:
    return program_of(module(Net), net_inputs(4), net_inputs(6))


@pytest.fixture(scope="module")
def artifact(program: Program) -> Artifact:
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        return emit(program)


# ---- running ----


def test_segments_and_kernels_give_what_torch_gives(
    kernel: type[SparseKernel], program: Program, artifact: Artifact
) -> None:
    executor = open_executor(artifact, threads=1)
    assert isinstance(executor, SegmentExecutor)
    for batch in (2, 1, 4):
        inputs = net_inputs(batch)
        assert_close(run(executor, program, inputs), list(program.run(*inputs)))
    assert [len(each.runs) for each in kernel.calls] == [3, 3]
    assert {each.threads for each in kernel.calls} == {1}
    executor.close()


def test_kernels_read_and_write_in_the_layout_of_the_projections(
    kernel: type[SparseKernel], program: Program, artifact: Artifact
) -> None:
    steps = artifact.manifest["native"]["steps"]
    kinds = ["segment" if "segment" in step else "view" if "view" in step else "kernel" for step in steps]
    around = ["segment", *["view"] * 6, "kernel", *["view"] * 2]
    assert kinds == [*around, *around, "segment"]
    nodes = [node.op_type for step in steps if "segment" in step
             for node in onnx.load_from_string(artifact.files[step["segment"]]).graph.node]  # fmt: skip
    assert "Transpose" not in nodes
    open_executor(artifact, threads=1).run(feeds(program, net_inputs(2)))
    for each in kernel.calls:
        (given,) = each.runs
        for name in ("query", "key", "value", "out"):
            batch, _, heads, _ = given[name].strides
            assert given[name].strides == (80 * 32 * 4, 16 * 4, 32 * 4, 4), (name, batch, heads)


@pytest.mark.parametrize(
    "name", ["mask", "bias, causal, grouped", "one mask for all", "a bias without keys", "budgets by head"]
)
def test_an_attention_alone_is_a_program_without_any_segment_for_it(kernel: type[SparseKernel], name: str) -> None:
    case = ATTENTIONS[name]
    program = program_of(case.module(), case.inputs())
    artifact = emit(program)
    assert [set(step) for step in artifact.manifest["native"]["steps"]] == [{"kernel", "inputs", "output", "rows"}]
    assert_close(run(open_executor(artifact, threads=1), program, case.inputs()), [case.expected(case.inputs())])


def test_cuts_of_any_shape(kernel: type[SparseKernel]) -> None:
    """Weights as queries, a transposed value that something else reads, a result that is an output, and one read twice."""
    attend = Attend(48, H=2, budget=(5,)).module()

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Parameter(torch.randn(3, 2, 48, 8))

        def forward(self, x: Tensor) -> list[Tensor]:
            k = x.view(3, 48, 2, 8).transpose(1, 2)
            first = attend(self.query, k, k)
            second = attend(first, k * 2, first)
            return [
                first,
                first.transpose(1, 2),
                second.transpose(1, 2).flatten(2),
                k + 1,
                first.transpose(1, 2).reshape(3, 48, 16),
            ]

    x = torch.randn(3, 48, 16)
    program = program_of(module(Odd), (x,))
    executor = open_executor(emit(program), threads=1)
    assert isinstance(executor, SegmentExecutor)
    results = run(executor, program, (x,))
    assert_close(results, list(program.run(x)))
    for number, each in enumerate(results):
        assert each.is_contiguous()
        assert not any(np.may_share_memory(each.numpy(), other.numpy()) for other in (x, *results[:number]))


@pytest.mark.parametrize("how", ["split", "chunk", "unbind", "select"])
def test_parts_of_one_projection_are_read_where_they_lie(kernel: type[SparseKernel], how: str) -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(32, 96)

        def forward(self, x: Tensor) -> Tensor:
            y = self.qkv(x)
            if how in ("split", "chunk"):
                parts = y.split(32, -1) if how == "split" else y.chunk(3, -1)
                q, k, v = (each.unflatten(-1, (2, 16)).transpose(1, 2) for each in parts)
            else:
                whole = y.unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
                q, k, v = whole.unbind(0) if how == "unbind" else (whole[0], whole[1], whole[2])
            result: Tensor = torch.ops.dsopt.sparse_attention(q, k, v, None, "none", None, [9.0], "keys", 16, 0)
            return result.transpose(1, 2).flatten(2) + x

    inputs = (torch.randn(2, 80, 32),)
    program = program_of(module(Fused), inputs, (torch.randn(3, 80, 32),))
    executor = open_executor(emit(program), threads=1)
    assert_close(run(executor, program, inputs), list(program.run(*inputs)))
    ((given,),) = (each.runs for each in kernel.calls)
    for name in ("query", "key", "value"):
        assert given[name].strides == (80 * 96 * 4, 16 * 4, 96 * 4, 4)
    assert given["query"].base is not None
    assert set(executor.trace(feeds(program, inputs))) >= {"linear", "sparse_attention"}


def test_all_layers_are_traced(kernel: type[SparseKernel], program: Program, artifact: Artifact) -> None:
    inputs = net_inputs(2)
    traced, expected = open_executor(artifact, threads=1).trace(feeds(program, inputs)), program.trace(*inputs)
    assert list(traced) == [layer["node"] for layer in artifact.manifest["layers"]]
    for name, value in traced.items():
        assert_close([torch.from_numpy(np.ascontiguousarray(value))], [expected[name]])


def test_a_profile_has_the_kernels_among_the_layers(
    kernel: type[SparseKernel], program: Program, artifact: Artifact
) -> None:
    with load(artifact, threads=1) as session:
        layers = session.profile(feeds(program, net_inputs(1))).layers
    nodes = [layer.node for layer in layers]
    assert [node for node in nodes if "sparse_attention" in node] == ["sparse_attention", "sparse_attention_1"]
    assert nodes.index("linear_2") < nodes.index("sparse_attention") < nodes.index("linear_3")
    assert {layer.layer for layer in layers} >= {"first", "second", "first.q", "head"}
    assert all(layer.seconds is not None and layer.seconds >= 0 for layer in layers)


def test_wrong_inputs_are_input_errors(kernel: type[SparseKernel]) -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.block = nn.Embedding(5, 32), Block()

        def forward(self, tokens: Tensor) -> Tensor:
            result: Tensor = self.block(self.table(tokens))
            return result

    tokens = torch.zeros(1, 80, dtype=torch.int64)
    program = program_of(module(Embedded), (tokens,))
    with load(emit(program), threads=1) as session, pytest.raises(InputError, match="DS0852"):
        session.run(tokens.numpy() + 99)


# ---- the portable form beside it ----


@pytest.mark.parametrize("how", ["environment", "cpu"])
def test_the_portable_form_runs_where_kernels_must_or_can_not(
    kernel: type[SparseKernel], program: Program, artifact: Artifact, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "environment":
        monkeypatch.setenv("DSOPT_NATIVE", "0")
    else:
        monkeypatch.setattr(kernel, "fits", False)
    executor = open_executor(artifact, threads=1)
    assert isinstance(executor, OnnxExecutor)
    assert not kernel.calls
    assert_close(run(executor, program, net_inputs(2)), list(program.run(*net_inputs(2))))


def test_without_a_compiler_the_portable_form_is_all_there_is(
    kernel: type[SparseKernel], program: Program, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(config: Any) -> Any:
        raise ToolchainError("DS0390", "there is no C compiler")

    monkeypatch.setattr("dsopt.backends.cpu.native.build", no_compiler)
    alone = emit(program)
    assert alone.manifest["native"] == {"absent": "there is no C compiler"}
    assert set(alone.files) == {"model.onnx"}
    assert alone.files["model.onnx"] == artifact.files["model.onnx"]
    assert isinstance(open_executor(alone, threads=1), OnnxExecutor)


def test_float64_has_no_kernel(kernel: type[SparseKernel]) -> None:
    case = ATTENTIONS["float64"]
    assert "float64" in emit(program_of(case.module(), case.inputs())).manifest["native"]["absent"]


def test_a_program_without_sparse_attention_is_as_it_was(kernel: type[SparseKernel]) -> None:
    artifact = emit(program_of(module(lambda: nn.Linear(4, 3)), (torch.randn(2, 4),)))
    assert set(artifact.files) == {"model.onnx"}
    assert "native" not in artifact.manifest


def test_both_ways_are_checked(
    kernel: type[SparseKernel], program: Program, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreement = check_against(artifact, program, CpuBackend(), None, seed=0, tolerance=1e-4)
    assert agreement.place == "ONNX Runtime and native kernels, and by ONNX Runtime alone"
    assert agreement.max_relative_error is not None
    monkeypatch.setattr(kernel, "is_wrong", True)
    with pytest.raises(
        CheckError, match=r"(?s)first layer that differs.*sparse_attention.*run by ONNX Runtime and native"
    ):
        check_against(artifact, program, CpuBackend(), None, seed=0, tolerance=1e-4)
    monkeypatch.setattr(kernel, "is_wrong", False)
    wrong = artifact.files["model.onnx"].replace(b"Softmax", b"Hardmax")  # as many letters: weights stay where they are
    with pytest.raises(CheckError, match="run by ONNX Runtime alone"):
        check_against(
            replace(artifact, files={**artifact.files, "model.onnx": wrong}), program, CpuBackend(), None, seed=0,
            tolerance=1e-4,
        )  # fmt: skip


# ---- files ----


def weights(content: bytes) -> dict[str, Any]:
    return {each.name: each for each in onnx.load_from_string(content).graph.initializer}


def test_weights_are_stored_once_and_aligned(kernel: type[SparseKernel], program: Program, artifact: Artifact) -> None:
    files = artifact.files
    whole = weights(files["model.onnx"])
    referred = 0
    for name, content in files.items():
        if not name.startswith("segment"):
            continue
        for each in onnx.load_from_string(content).graph.initializer:
            if each.data_location != onnx.TensorProto.EXTERNAL:
                assert len(each.raw_data) <= 1024
                continue
            entry = {item.key: item.value for item in each.external_data}
            offset, length = int(entry["offset"]), int(entry["length"])
            assert (entry["location"], offset % 64) == ("model.onnx", 0)
            assert files["model.onnx"][offset : offset + length] == whole[each.name].raw_data
            referred += length
    assert referred == 2 * 4 * 32 * 32 * 4


def test_a_model_with_aligned_weights_says_what_it_says_without(
    kernel: type[SparseKernel], program: Program, artifact: Artifact
) -> None:
    read = onnx.load_from_string(artifact.files["model.onnx"])
    onnx.checker.check_model(read, full_check=True)
    expected = {name: tensor for name, tensor in program.weights.items() if name.endswith("bias")}
    for name, tensor in expected.items():
        found = {each.name: each for each in read.graph.initializer}[name]
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(found), tensor.detach().numpy())


def test_the_same_program_gives_the_same_files(kernel: type[SparseKernel], program: Program) -> None:
    first, second = emit(program), emit(program)
    assert dict(first.files) == dict(second.files)
    assert first.manifest == second.manifest


@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize("place", ["folder", "one.dsopt"])
def test_stored_artifacts_run(
    kernel: type[SparseKernel],
    program: Program,
    artifact: Artifact,
    place: str,
    is_large: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if is_large:
        monkeypatch.setattr(model, "EXTERNAL_DATA_ABOVE_BYTES", 1000)
        artifact = emit(program)
    assert ("model.onnx.data" in artifact.files) == is_large
    artifact.save(tmp_path / place)
    executor = open_executor(load_artifact(tmp_path / place), threads=1)
    assert isinstance(executor, SegmentExecutor)
    assert_close(run(executor, program, net_inputs(2)), list(program.run(*net_inputs(2))))
    assert set(executor.trace(feeds(program, net_inputs(2)))) >= {"linear", "sparse_attention"}


def test_altered_files_are_not_run(
    kernel: type[SparseKernel], program: Program, artifact: Artifact, tmp_path: Path
) -> None:
    artifact.save(tmp_path / "folder")
    for name in ("segment.0.onnx", "model.onnx", next(iter(sorted((tmp_path / "folder" / "kernels").iterdir()))).name):
        path = next((tmp_path / "folder").rglob(name))
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ArtifactError, match="DS0802"):
            open_executor(load_artifact(tmp_path / "folder"), threads=1)
        path.write_bytes(content)
    open_executor(load_artifact(tmp_path / "folder"), threads=1)


BAD: dict[str, Any] = {
    "no steps": lambda native: native.pop("steps"),
    "steps are text": lambda native: native.update(steps="all"),
    "a step is a number": lambda native: native["steps"].append(3),
    "a file that is not there": lambda native: native["steps"][0].update(segment="../../etc/passwd"),
    "a library that is not there": lambda native: native["kernels"][0]["libraries"].update(
        v9="/lib/x86_64-linux-gnu/libc.so.6"
    ),
    "a kernel that is not there": lambda native: native["steps"][7].update(kernel=7),
    "a negative kernel": lambda native: native["steps"][7].update(kernel=-1),
    "a value that is not made": lambda native: native["steps"][7].update(inputs=["x", "y", "z", "w"]),
    "too few inputs": lambda native: native["steps"][7].update(inputs=["x"]),
    "no order of axes": lambda native: native["steps"][2].update(transpose=[0, 0, 1, 1]),
    "neither transposed nor reshaped": lambda native: native["steps"][2].pop("transpose"),
    "a part and transposed": lambda native: native["steps"][2].update(part=[0, 1]),
    "a part before the first": lambda native: native["steps"][2].update(transpose=[], part=[0, -1]),
    "a part of nothing": lambda native: native["steps"][2].update(transpose=[], part=[0]),
    "two sizes unknown": lambda native: native["steps"][1].update(reshape=[-1, -1]),
    "a head of no size": lambda native: native["kernels"][0]["config"].update(head=0),
    "a head of a large size": lambda native: native["kernels"][0]["config"].update(head=1 << 60),
    "a head that is text": lambda native: native["kernels"][0]["config"].update(head="64"),
    "another causal": lambda native: native["kernels"][0]["config"].update(causal="sometimes"),
    "a field too many": lambda native: native["kernels"][0]["config"].update(path="/tmp"),
    "budgets of other heads": lambda native: native["kernels"][0]["config"].update(budget=[1.0, 2.0, 3.0]),
    "a budget that is none": lambda native: native["kernels"][0]["config"].update(budget=[float("nan")]),
    "other outputs": lambda native: native.update(outputs=["y"]),
    "an output that is not made": lambda native: native.update(outputs=["y", "z"]),
}


@pytest.mark.parametrize("name", BAD)
def test_a_plan_that_contradicts_itself_is_refused(
    kernel: type[SparseKernel], program: Program, artifact: Artifact, name: str
) -> None:
    manifest = copy.deepcopy(dict(artifact.manifest))
    BAD[name](manifest["native"])
    with pytest.raises(ArtifactError, match="DS0397"):
        open_executor(replace(artifact, manifest=manifest), threads=1)
    assert not kernel.calls


def test_a_view_that_does_not_fit_is_an_artifact_error(
    kernel: type[SparseKernel], program: Program, artifact: Artifact
) -> None:
    manifest = copy.deepcopy(dict(artifact.manifest))
    manifest["native"]["steps"][1].update(reshape=[7, 11])
    with pytest.raises(ArtifactError, match="DS0855"):
        open_executor(replace(artifact, manifest=manifest), threads=1).run(feeds(program, net_inputs(1)))


def test_segments_of_another_build_are_refused(
    kernel: type[SparseKernel], program: Program, artifact: Artifact
) -> None:
    files = {**artifact.files, "segment.0.onnx": artifact.files["segment.20.onnx"]}
    with pytest.raises(ArtifactError, match="DS0855"):
        open_executor(replace(artifact, files=files), threads=1)


def test_kernels_that_are_equal_share_their_files(
    kernel: type[SparseKernel], program: Program, artifact: Artifact
) -> None:
    libraries = [name for name in artifact.files if name.startswith("kernels/")]
    assert len(libraries) == len(LEVELS)
    assert len(artifact.manifest["native"]["kernels"]) == 2
