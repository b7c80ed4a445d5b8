"""The cuda backend as a whole: real models to 1e-5, all blockers at once, plans, determinism, and a check that catches lies."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dsopt
from dsopt.artifact import Artifact, load_artifact
from dsopt.backends import cuda
from dsopt.backends.base import EmitOptions
from dsopt.backends.check import relative_error
from dsopt.backends.cuda import CudaBackend, compiler
from dsopt.backends.cuda.limits import MOST_ELEMENTS, all_blockers
from dsopt.backends.cuda.plan import ALIGNMENT
from dsopt.errors import CheckError, ToolchainError, UnsupportedOpError
from dsopt.ir import Program, example_inputs
from dsopt.ir.interpret import evaluate_all
from dsopt.passes.base import PassContext, PassManager
from dsopt.runtime.cuda import open_executor
from dsopt.runtime.cuda_executor import PlanExecutor
from dsopt.runtime.cuda_plan import LaunchPlan
from dsopt.simulate.cuda_host import HostDevice, host_compiler
from dsopt.target import CudaTarget
from models import build
from tests.backends.cuda.harness import TOLERANCE, agree, capture, check, emit, seeded
from tests.runtime.stub_driver import build_driver

needs_host = pytest.mark.skipif(host_compiler() is None, reason="no host C++ compiler")

SMALL_MODELS = ("kws", "ic", "vww", "ad", "digits", "lstm", "gru", "unet", "bert", "gpt", "gpt_decode")
LARGE_MODELS = ("mobilenet_v2", "resnet152")


def fixed(name: str) -> Program:
    """Capture an example model with every varying size fixed."""
    program = dsopt.capture(build(name))
    sizes = {dim: max(entry.min, 1 if dim == "batch" else 12) for dim, entry in program.dims.items()}
    return program.specialize(sizes) if sizes else program


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 5), nn.Softmax(-1)
    )  # fmt: skip


@needs_host
@pytest.mark.parametrize("name", SMALL_MODELS)
def test_small_models_agree_with_eager(name: str) -> None:
    program = fixed(name)
    check(emit(program), program)


@needs_host
@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE_MODELS)
def test_large_models_agree_with_eager(name: str) -> None:
    program = fixed(name)
    check(emit(program), program)


@needs_host
def test_state_is_carried_from_run_to_run(counter_program: Program) -> None:
    assert check(emit(counter_program), counter_program).runs == 3


@needs_host
def test_nested_inputs_and_outputs_keep_their_names(nested_program: Program) -> None:
    artifact = emit(nested_program)
    check(artifact, nested_program)
    ports = artifact.manifest["cuda"]["ports"]
    assert sorted(ports["inputs"]) == ["opts.gain", "pair.0", "pair.1", "x"]
    assert sorted(ports["outputs"]) == ["out", "parts.0", "parts.1"]


@needs_host
@pytest.mark.parametrize(
    "function",
    [
        lambda x: x,
        lambda x: (x, x),
        lambda x: (x.reshape(-1), x + 1),
        lambda x: torch.ones(3),
        lambda x: x.sum(),
    ],
    ids=["input", "twice", "view", "constant", "scalar"],
)
def test_outputs_that_no_kernel_fills_are_right_too(function: Callable[[Tensor], Any]) -> None:
    agree(function, seeded(3, 4))


@needs_host
def test_nan_and_infinity_go_through_as_they_do_in_torch() -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 2.0]).repeat(5, 1)
    for function in (torch.relu, lambda x: torch.maximum(x, x.t()), lambda x: torch.minimum(x, x.t()), torch.isnan,
                     lambda x: x.clamp(-1, 1), lambda x: torch.nn.functional.max_pool2d(x[None], 2), lambda x: x * 0.5 + 1):  # fmt: skip
        agree(lambda x, function=function: function(x), x)  # type: ignore[misc]


@needs_host
def test_steps_do_not_depend_on_the_order_of_threads() -> None:
    program = capture(_net(), seeded(2, 3, 8, 8))
    artifact = emit(program)
    plan, feeds = LaunchPlan.read(artifact.manifest), {"input": seeded(2, 3, 8, 8).numpy()}
    results = []
    for reverse in (False, True):
        device = HostDevice(artifact.files["kernels.cu"].decode(), plan.kernels, reverse=reverse)
        executor = PlanExecutor(plan, artifact.files["weights.bin"], device)
        results.append(executor.run(feeds)["output"])
        executor.close()
    np.testing.assert_array_equal(results[0], results[1])


@needs_host
@pytest.mark.parametrize("name", ["kws", "gpt_decode", "lstm", "unet"])
def test_a_trace_gives_the_value_of_every_node_that_has_kernels(name: str) -> None:
    target, program = CudaTarget(("sm_90",)), fixed(name)
    backend = CudaBackend()
    rewritten, _ = PassManager(backend.pipeline(target)).run(program, PassContext(target=target))
    artifact = backend.emit(rewritten, target, EmitOptions())
    executor, _ = backend.check_executor(artifact)
    assert isinstance(executor, PlanExecutor)
    inputs = example_inputs(program, seed=3)
    feeds = {spec.name: value.numpy() for spec, value in zip(program.signature.inputs, inputs, strict=True)}
    feeds |= {f"state.{state.name}": program.weights[state.name].numpy() for state in program.states}
    got = executor.trace(feeds)
    executor.close()
    with torch.no_grad():
        values = {
            node.name: value for node, value in evaluate_all(rewritten.graph, rewritten.bind(inputs, None)).items()
        }
    assert sorted(got) == sorted(layer["node"] for layer in artifact.manifest["layers"])
    wanted = {node: value for node, value in values.items() if node in got and isinstance(value, Tensor)}
    assert len(wanted) >= len(got) - 3
    errors = {node: relative_error(got[node], value.detach().numpy()) for node, value in wanted.items()}
    assert {node: error for node, error in errors.items() if not error <= TOLERANCE} == {}


def test_an_artifact_from_disk_runs_through_the_driver_interface(tmp_path: Path) -> None:
    program = capture(_net(), seeded(2, 3, 8, 8))
    emit(program).save(tmp_path / "net.dsopt")
    artifact = load_artifact(tmp_path / "net.dsopt")
    kernels = LaunchPlan.read(artifact.manifest).kernels
    driver = build_driver(tmp_path, artifact.files["kernels.cu"].decode(), kernels)
    executor = open_executor(artifact, driver)
    got = executor.run({"input": seeded(2, 3, 8, 8).numpy()})["output"]
    executor.close()
    assert relative_error(got, program.run(seeded(2, 3, 8, 8))[0].detach().numpy()) <= TOLERANCE


# ---- the check of every build ----


@needs_host
def test_a_planted_miscompile_fails_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    written = cuda.write_kernels

    def miscompile(*arguments: Any) -> Any:
        kernels = written(*arguments)
        assert "ic < 3" in kernels.source
        return replace(kernels, source=kernels.source.replace("ic < 3", "ic < 2", 1))

    monkeypatch.setattr(cuda, "write_kernels", miscompile)
    with pytest.raises(CheckError, match="DS0403") as caught:
        dsopt.compile(capture(_net(), seeded(2, 3, 8, 8)), "cuda:sm_90")
    assert "output: relative error" in caught.value.where


@needs_host
def test_an_index_beyond_a_buffer_fails_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    written = cuda.write_kernels

    def overrun(*arguments: Any) -> Any:
        kernels = written(*arguments)
        assert "k < 128" in kernels.source
        return replace(kernels, source=kernels.source.replace("k < 128", "k < 1 << 20", 1))

    monkeypatch.setattr(cuda, "write_kernels", overrun)
    with pytest.raises(CheckError, match=r"DS1072: kernel k2_layer_5_linear.* touches byte"):
        dsopt.compile(capture(_net(), seeded(2, 3, 8, 8)), "cuda:sm_90")


@needs_host
def test_a_workspace_that_is_too_tight_fails_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = cuda.plan_workspace

    def overlap(*arguments: Any) -> Any:
        plan = planned(*arguments)
        return replace(plan, offsets=dict.fromkeys(plan.offsets, 0))

    monkeypatch.setattr(cuda, "plan_workspace", overlap)
    with pytest.raises(CheckError, match=r"DS1072: .* shares bytes with argument"):
        dsopt.compile(capture(_net(), seeded(2, 3, 8, 8)), "cuda:sm_90")


def test_without_a_host_compiler_the_manifest_says_unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "host_compiler", lambda: None)
    artifact = dsopt.compile(capture(_net(), seeded(2, 3, 8, 8)), "cuda:sm_90")
    assert artifact.manifest["check"]["checked"] is False
    assert "no host C++ compiler" in artifact.manifest["check"]["why_unchecked"]


# ---- refusals ----


def test_a_varying_size_is_refused_at_the_input_with_the_option_that_fixes_it(conv_program: Program) -> None:
    with pytest.raises(UnsupportedOpError) as caught:
        CudaBackend().emit(conv_program, CudaTarget(), EmitOptions())
    assert caught.value.where == (
        "%x x: its shape ['batch', 3, 8, 8] varies, and kernels have fixed sizes (fix it with --dim batch=1)"
    )


class Solves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.cholesky(x) + torch.linalg.inv(x)


def test_all_operators_without_a_kernel_are_refused_at_once() -> None:
    program = capture(Solves(), torch.eye(4))
    found = CudaBackend().unsupported(program, CudaTarget())
    assert {"aten.linalg_cholesky.default", "aten.linalg_inv.default"} <= {blocker.op for blocker in found}
    assert all("test_backend.py" in blocker.source for blocker in found)


def test_tensors_beyond_32_bit_indices_are_refused(capture_function: Callable[..., Program]) -> None:
    program = capture_function(lambda x: x + 1, torch.empty(1, 1).expand(1 << 16, (1 << 15) + 1))
    assert MOST_ELEMENTS < (1 << 16) * ((1 << 15) + 1)
    assert all("32-bit indices" in blocker.why for blocker in all_blockers(program))
    assert len(all_blockers(program)) == 2


def test_an_architecture_that_the_compiler_does_not_know_is_refused() -> None:
    with pytest.raises(ToolchainError, match="DS0702"):
        emit(capture(_net(), seeded(2, 3, 8, 8)), ("sm_70",))


# ---- what an artifact holds ----


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return emit(capture(_net(), seeded(2, 3, 8, 8)), ("sm_80", "sm_90", "sm_100"))


def test_it_has_machine_code_for_each_architecture_and_ptx_of_the_newest(artifact: Artifact) -> None:
    archs = [image["arch"] for image in artifact.manifest["cuda"]["images"]]
    assert archs == ["sm_80", "sm_90", "sm_100", "compute_100"]
    for image in artifact.manifest["cuda"]["images"]:
        start = b"\x7fELF" if image["file"].endswith(".cubin") else b"//"
        assert artifact.files[image["file"]].lstrip().startswith(start)


def test_an_architecture_named_twice_is_compiled_once() -> None:
    twice = emit(capture(lambda x: x + 1, seeded(4)), ("sm_90", "sm_90"))
    assert [image["arch"] for image in twice.manifest["cuda"]["images"]] == ["sm_90", "compute_90"]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_nvcc_serves_where_nvrtc_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "nvrtc_library", lambda: None)
    built = emit(capture(_net(), seeded(2, 3, 8, 8)))
    assert built.manifest["cuda"]["compiler"].startswith("nvcc ")
    assert built.files["kernels.sm_90.cubin"].startswith(b"\x7fELF")
    assert sorted(built.manifest["cuda"]["resources"]) == sorted({one["kernel"] for one in built.manifest["launches"]})


def test_registers_and_spills_of_each_kernel_are_recorded(artifact: Artifact) -> None:
    resources = artifact.manifest["cuda"]["resources"]
    assert sorted(resources) == sorted({launch["kernel"] for launch in artifact.manifest["launches"]})
    for kernel in resources.values():
        assert sorted(kernel) == ["sm_100", "sm_80", "sm_90"]
        for used in kernel.values():
            assert 0 < used["registers"] <= 255
            assert used["spill_store_bytes"] == used["spill_load_bytes"] == used["stack_bytes"] == 0


def test_no_two_buffers_that_live_at_once_share_bytes(artifact: Artifact) -> None:
    """Judged from the launches alone: a buffer lives from its first appearance, inputs from the start, outputs to the end."""
    manifest = artifact.manifest
    buffers, ports = manifest["memory"]["buffers"], manifest["cuda"]["ports"]
    lives: dict[str, list[int]] = {}
    for moment, launch in enumerate(manifest["launches"], start=1):
        for name in launch["args"]:
            lives.setdefault(name, []).append(moment)
    for name in ports["inputs"].values():
        lives.setdefault(name, []).append(0)
    for name in ports["outputs"].values():
        lives.setdefault(name, []).append(len(manifest["launches"]) + 1)
    placed = [(name, buffers[name]) for name in sorted(lives)]
    for number, (name, one) in enumerate(placed):
        assert one["offset"] % ALIGNMENT == 0
        for other_name, other in placed[:number]:
            apart = max(lives[name]) < min(lives[other_name]) or max(lives[other_name]) < min(lives[name])
            same_bytes = (one["space"], one["offset"], one["bytes"]) == (
                other["space"],
                other["offset"],
                other["bytes"],
            )
            overlap = (
                one["offset"] < other["offset"] + other["bytes"] and other["offset"] < one["offset"] + one["bytes"]
            )
            assert (
                one["space"] != other["space"] or not overlap or apart or (same_bytes and "view" in name + other_name)
            )


def test_the_same_program_gives_the_same_bytes(artifact: Artifact, tmp_path: Path) -> None:
    again = emit(capture(_net(), seeded(2, 3, 8, 8)), ("sm_80", "sm_90", "sm_100"))
    for name, build_ in (("a", artifact), ("b", again)):
        build_.save(tmp_path / f"{name}.dsopt")
    assert (tmp_path / "a.dsopt").read_bytes() == (tmp_path / "b.dsopt").read_bytes()


def test_running_without_a_gpu_says_that_there_is_none(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dsopt.runtime
    from dsopt.runtime import cuda_driver

    monkeypatch.setattr(cuda_driver.ctypes, "CDLL", _no_library)
    artifact.save(tmp_path / "net.dsopt")
    with pytest.raises(ToolchainError, match="DS0705: there is no GPU here to run a CUDA artifact"):
        dsopt.runtime.load(load_artifact(tmp_path / "net.dsopt"))


def _no_library(name: str) -> None:
    raise OSError(f"{name}: cannot open shared object file: No such file or directory")
