"""capture -> compile -> load, for whole models, against eager torch; and what a build refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import dsopt
import dsopt.api
import dsopt.runtime
from dsopt.artifact import Artifact
from dsopt.backends.check import relative_error
from dsopt.backends.cpu import CpuBackend
from dsopt.errors import CaptureError, CheckError, ReadError, UsageError
from dsopt.ir import Program
from tests.conftest import ConvNet, Counter, Nested, nested_example


def test_an_artifact_gives_what_the_model_gave(conv_net: nn.Module, conv_program: Program, tmp_path: Path) -> None:
    dsopt.compile(conv_program, "cpu").save(tmp_path / "net.dsopt")
    with dsopt.runtime.load(tmp_path / "net.dsopt") as session:
        for batch in (1, 2, 7):
            x = torch.randn(batch, 3, 8, 8)
            np.testing.assert_allclose(session.run(x), conv_net(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_nested_inputs_and_outputs_come_back_as_the_model_s(tmp_path: Path) -> None:
    model = Nested().eval()
    args, kwargs = nested_example()
    program = dsopt.capture(model, args, kwargs=kwargs)
    with dsopt.runtime.load(dsopt.compile(program, "cpu")) as session:
        got, want = session.run(*args, **kwargs), model(*args, **kwargs)
    np.testing.assert_allclose(got["out"], want["out"].detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(got["parts"][0], want["parts"][0].detach().numpy(), rtol=1e-5)
    assert got["note"] is None


def test_state_is_kept_by_the_session_and_reset() -> None:
    model = Counter()
    x = torch.randn(2, 3)
    artifact = dsopt.compile(dsopt.capture(Counter(), (x,)), "cpu")
    with dsopt.runtime.load(artifact) as session:
        first = session.run(x)
        for got, want in ((first, model(x)), (session.run(x), model(x)), (session.run(x), model(x))):
            np.testing.assert_allclose(got, want.numpy(), rtol=1e-6)
        session.reset()
        np.testing.assert_array_equal(session.run(x), first)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_sequence_of_any_length_runs_through_a_recurrent_layer(kind: type[nn.RNNBase]) -> None:
    model = kind(3, 5, num_layers=2, bidirectional=True, batch_first=True)
    program = dsopt.capture(model, (torch.randn(2, 4, 3),), {"input": {0: "batch", 1: "time"}})
    assert set(program.dims) == {"batch", "time"}
    with dsopt.runtime.load(dsopt.compile(program, "cpu")) as session:
        for batch, time in ((1, 9), (3, 1)):
            x = torch.randn(batch, time, 3)
            np.testing.assert_allclose(session.run(x)[0], model(x)[0].detach().numpy(), rtol=1e-4, atol=1e-6)


def test_the_same_input_gives_the_same_bytes(conv_program: Program) -> None:
    builds = [dsopt.compile(conv_program, "cpu") for _ in range(2)]
    assert builds[0].manifest == builds[1].manifest
    assert {name: builds[0].files[name] for name in builds[0].files} == {
        name: builds[1].files[name] for name in builds[1].files
    }


def test_artifacts_name_no_path_and_no_time(conv_program: Program, tmp_path: Path) -> None:
    build = dsopt.api.build(conv_program, "cpu")
    text = json.dumps(dict(build.artifact.manifest), default=str)
    assert str(Path.cwd()) not in text
    assert "seconds" not in text
    lock = json.loads(build.artifact.files["lock.json"])
    assert lock["packages"]["torch"].startswith("2.")
    assert lock["passes"][0] == "canonicalize"


# ---- the check ----


def _plant(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    emit = CpuBackend.emit

    def planted(self: CpuBackend, *given: Any) -> Artifact:
        artifact = emit(self, *given)
        model = onnx.load_from_string(artifact.files["model.onnx"])
        change(model)
        return replace(artifact, files={**artifact.files, "model.onnx": model.SerializeToString()})

    monkeypatch.setattr(CpuBackend, "emit", planted)


def _halve_a_weight(model: onnx.ModelProto) -> None:
    weight = max(model.graph.initializer, key=lambda item: len(item.raw_data))
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] += 0.5
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))


def _swap_an_operator(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Sigmoid"


@pytest.mark.parametrize("change", [_halve_a_weight, _swap_an_operator])
def test_a_miscompile_planted_in_the_onnx_fails_the_build(
    change: Any, conv_program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    _plant(monkeypatch, change)
    with pytest.raises(CheckError, match="disagrees with the model") as caught:
        dsopt.compile(conv_program, "cpu")
    assert "output: relative error" in caught.value.where
    assert caught.value.exit_code == 1


@pytest.mark.mcu
@pytest.mark.parametrize(
    ("old", "new"), [("total +=", "total -="), ("oh - 1;", "oh - 0;"), ("* weight[", "* -weight[")]
)
def test_a_miscompile_planted_in_the_c_fails_the_build(old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ziglang")
    pytest.importorskip("unicorn")
    from dsopt.backends.mcu import emitter

    generate = emitter.generate

    def planted(*given: Any) -> Any:
        sources = generate(*given)
        text = sources.files["model.c"]
        # what is planted must compile and change results, or this test would pass for another reason
        return (
            replace(sources, files={**sources.files, "model.c": text.replace(old, new, 1)}) if old in text else sources
        )

    program = dsopt.capture(nn.Conv2d(1, 2, 3, padding=1), (torch.randn(1, 1, 5, 5),))
    assert dsopt.api.build(program, "mcu:cortex-m4").agreement.max_relative_error < 1e-5  # type: ignore[operator]
    monkeypatch.setattr(emitter, "generate", planted)
    with pytest.raises(CheckError, match="disagrees with the model"):
        dsopt.compile(program, "mcu:cortex-m4")


def test_the_check_uses_the_data_given(conv_program: Program) -> None:
    feeds = [{"x": np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)}]
    agreement = dsopt.api.build(conv_program, "cpu", data=feeds).agreement
    assert agreement.data == "given"
    assert agreement.max_relative_error is not None
    assert agreement.max_relative_error < 1e-5


@pytest.mark.parametrize(
    ("got", "want", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.5], [1.0, 2.0], 0.25),
        ([np.nan, 1.0], [np.nan, 1.0], 0.0),
        ([0.0, 1.0], [np.nan, 1.0], np.inf),
        ([np.inf, 1.0], [np.inf, 1.0], 0.0),
        ([-np.inf, 1.0], [np.inf, 1.0], np.inf),
        ([0.0], [0.0], 0.0),
        ([], [], 0.0),
    ],
)
def test_the_relative_error_handles_nan_infinity_and_zero(got: list[float], want: list[float], error: float) -> None:
    assert relative_error(np.array(got), np.array(want)) == pytest.approx(error)


def test_whole_numbers_and_shapes_must_be_equal() -> None:
    assert relative_error(np.array([1, 2]), np.array([1, 3])) == 1.0
    assert relative_error(np.array([1.0]), np.array([[1.0]])) == np.inf


# ---- bad input ----


def test_weights_that_are_nan_compile_to_a_program_that_gives_nan_where_the_model_does() -> None:
    model = ConvNet().eval()
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    program = dsopt.capture(model, (torch.randn(2, 3, 8, 8),))
    with dsopt.runtime.load(dsopt.compile(program, "cpu")) as session:
        got = session.run(torch.ones(2, 3, 8, 8))
    assert np.isnan(got[:, 0]).all()
    assert np.isfinite(got[:, 1:]).all()


def test_an_empty_batch_runs(conv_program: Program) -> None:
    with dsopt.runtime.load(dsopt.compile(conv_program, "cpu")) as session:
        try:
            assert session.run(np.zeros((0, 3, 8, 8), np.float32)).shape == (0, 5)
        except UsageError as problem:  # a captured range that begins at 1 is a fair answer
            assert "batch" in str(problem)


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        ("missing.pt2", ReadError, "there is no file missing.pt2"),
        ("no.such.module:factory", UsageError, "there is no module"),
        (3.14, UsageError, "cannot capture a float"),
    ],
)
def test_what_is_no_model_is_answered_with_a_sentence(model: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        dsopt.capture(model)


def test_a_module_without_an_example_says_how_to_give_one() -> None:
    with pytest.raises((CaptureError, UsageError)):
        dsopt.capture(ConvNet())


@pytest.mark.parametrize("target", ["gpu", "mcu", "mcu:cortex-a53", "cuda:sm_10", "cpu:avx", ""])
def test_an_unknown_target_is_answered_with_the_known_ones(target: str, conv_program: Program) -> None:
    with pytest.raises(UsageError, match=r"known|use sm_") as caught:
        dsopt.compile(conv_program, target)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("cpu", {"io": "int8"}, "io 'int8' is for microcontrollers, and the target is cpu"),
        ("cuda", {"optimize": "ram"}, "optimize 'ram' is for microcontrollers, and the target is cuda"),
        ("mcu:cortex-m4", {"optimize": "size"}, "unknown optimize 'size'"),
        ("mcu:cortex-m4", {"io": "int16"}, "unknown io 'int16'"),
        ("mcu:cortex-m4", {"io": "int8"}, "io 'int8' is for quantised models, and this one computes in floats"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(target: str, options: dict[str, Any], message: str) -> None:
    program = dsopt.capture(nn.Linear(4, 2).eval(), (torch.ones(1, 4),))
    with pytest.raises(UsageError, match=f"DS0308: {message}"):
        dsopt.compile(program, target, **options)
