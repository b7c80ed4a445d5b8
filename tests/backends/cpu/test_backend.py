"""What the cpu backend writes: names, determinism, external data, and the refusal of what it cannot write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from dsopt.artifact import load_artifact
from dsopt.backends.base import EmitOptions
from dsopt.backends.cpu import CpuBackend, model
from dsopt.backends.cpu.emitter import Emitter
from dsopt.backends.cpu.registry import CONVERTERS
from dsopt.errors import UnsupportedOpError, VerifyError
from dsopt.runtime.onnx import open_executor
from dsopt.target import CpuTarget
from tests.backends.cpu.cases import module
from tests.backends.cpu.harness import assert_close, emit, executor_of, feeds, program_of, run


class Net(nn.Module):
    """Named layers of the usual kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.features(x)
        return {"logits": self.head(y.mean((2, 3))), "pairs": torch.cat([x, x])}


class Counter(nn.Module):
    """Add up what it is given."""

    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        self.total.add_(x)
        return self.total * 2


X, OTHER = torch.randn(4, 3, 8, 8), torch.randn(6, 3, 8, 8)


def written(files: dict[str, bytes]) -> onnx.ModelProto:
    return onnx.load_from_string(files["model.onnx"])


def test_names_are_those_of_the_users_modules_and_weights() -> None:
    graph = written(dict(emit(program_of(module(Net), (X,))).files)).graph
    assert {"features.0/conv2d", "features.1/relu", "features.2/max_pool2d", "head/linear"} < {
        n.name for n in graph.node
    }
    assert {"features.0.weight", "features.0.bias", "head.weight", "head.bias"} <= {t.name for t in graph.initializer}
    assert [value.name for value in graph.input] == ["x"]
    assert [value.name for value in graph.output] == ["logits", "pairs"]


def test_varying_dims_keep_their_names_and_expressions() -> None:
    graph = written(dict(emit(program_of(module(Net), (X,), (OTHER,))).files)).graph
    dims = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.input, *graph.output)]
    assert dims == [["batch", 3, 8, 8], ["batch", 5], ["2*batch", 3, 8, 8]]


def test_a_model_says_its_producer_opset_and_nothing_of_the_machine() -> None:
    made = written(dict(emit(program_of(module(Net), (X,))).files))
    assert (made.producer_name, made.ir_version, made.opset_import[0].version) == ("dsopt", 10, model.OPSET)
    assert len(made.opset_import) == 1
    text = made.SerializeToString()
    assert str(Path(__file__).parent).encode() not in text
    assert not any(node.doc_string for node in made.graph.node)


def test_the_same_model_gives_the_same_bytes() -> None:
    first, second = (emit(program_of(module(Net), (X,), (OTHER,))) for _ in range(2))
    assert dict(first.files) == dict(second.files)
    assert first.manifest == second.manifest


def test_the_manifest_lists_layers_with_their_multiply_adds() -> None:
    artifact = emit(program_of(module(Net), (X,), (OTHER,)))
    layers = {layer["node"]: layer for layer in artifact.manifest["layers"]}
    assert layers["conv2d"] == {
        "name": "features.0/conv2d", "onnx_node": "features.0/conv2d", "node": "conv2d", "layer": "features.0", "op": "aten.conv2d.default",
        "shape": ["batch", 8, 8, 8], "multiply_adds": 4 * 8 * 8 * 8 * 3 * 9,
    }  # fmt: skip
    assert layers["linear"]["multiply_adds"] == 4 * 8 * 5
    assert layers["relu"]["multiply_adds"] == 0
    artifact.check()


def test_a_weight_matrix_is_stored_as_its_operator_reads_it() -> None:
    graph = written(dict(emit(program_of(module(lambda: nn.Linear(4, 3)), (torch.randn(2, 5, 4),))).files)).graph
    assert {t.name: list(t.dims) for t in graph.initializer} == {"weight.transposed": [4, 3], "bias": [3]}


def test_reshapes_of_one_varying_dim_are_constant() -> None:
    program = program_of(lambda x: x.view(x.shape[0], 3, -1).transpose(1, 2).flatten(1), (X,), (OTHER,))
    graph = written(dict(emit(program).files)).graph
    assert [node.op_type for node in graph.node] == ["Reshape", "Transpose", "Reshape"]


def test_large_weights_go_to_a_file_beside_the_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(model, "EXTERNAL_DATA_ABOVE_BYTES", 1000)
    program = program_of(
        module(lambda: nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 300))), (torch.randn(2, 64),)
    )
    artifact, inputs = emit(program), (torch.randn(2, 64),)
    assert set(artifact.files) == {"model.onnx", "model.onnx.data"}
    assert len(artifact.files["model.onnx"]) < 5000
    artifact.save(tmp_path / "folder")
    artifact.save(tmp_path / "one.dsopt")
    for each in (artifact, load_artifact(tmp_path / "folder"), load_artifact(tmp_path / "one.dsopt")):
        executor = open_executor(each, threads=1)
        assert_close(run(executor, program, inputs), list(program.run(*inputs)))
        assert set(executor.trace(feeds(program, inputs))) == {"linear", "tanh", "linear_1"}


def test_states_are_inputs_and_outputs() -> None:
    program = program_of(Counter(), (torch.ones(3),))
    artifact = emit(program)
    assert [value.name for value in written(dict(artifact.files)).graph.input] == ["x", "state.total"]
    executor = open_executor(artifact, threads=1)
    first = executor.run(feeds(program, (torch.full((3,), 4.0),)))
    np.testing.assert_array_equal(first["next.total"], [5.0] * 3)
    np.testing.assert_array_equal(first["output"], [10.0] * 3)


def test_outputs_that_are_inputs_weights_or_repeated_are_copied() -> None:
    program = program_of(lambda x, y: {"x": y + 1, "same": x, "twice": (y * 2,) * 2}, (torch.ones(2), torch.zeros(2)))
    results = executor_of(program).run(feeds(program, (torch.ones(2), torch.zeros(2))))
    values = {name: value.tolist() for name, value in results.items()}
    assert values == {"x": [1, 1], "same": [1, 1], "twice.0": [0, 0], "twice.1": [0, 0]}


def test_a_weight_may_have_the_name_of_an_input() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Parameter(torch.ones(3))
            self.output = nn.Parameter(torch.full((3,), 2.0))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.x + self.output

    program = program_of(Odd(), (torch.zeros(3),))
    assert run(executor_of(program), program, (torch.ones(3),))[0].tolist() == [3, 3, 3]


# ---- refusals ----


def test_all_blockers_are_listed_at_once() -> None:
    class Bad(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y, places = torch.ops.aten.max_pool2d_with_indices(x, [2, 2])
            return torch.fft.rfft(y).abs() + places.sum() + torch.linalg.det(x[0, :, :3, :3]).sum()

    program = program_of(Bad(), (X,))
    blockers = CpuBackend().unsupported(program, CpuTarget())
    operators = [blocker.op.split(".")[1] for blocker in blockers]
    assert "max_pool2d_with_indices" in operators
    assert "fft_rfft" in operators
    assert len(blockers) >= 3
    first = next(blocker for blocker in blockers if "max_pool" in blocker.op)
    assert first.source.startswith("test_backend.py:")
    assert "indices" in first.why
    assert first.fix
    with pytest.raises(UnsupportedOpError, match=r"(?s)max_pool2d_with_indices.*fft_rfft"):
        emit(program)


@pytest.mark.parametrize(
    ("function", "inputs", "why"),
    [
        (lambda x: x.to(torch.bfloat16), (X,), "bfloat16"),
        (lambda x: x.float(), (X.bfloat16(),), "the input is bfloat16"),
        (lambda x: x.real, (X.to(torch.complex64),), "the input is complex64"),
        (module(lambda: nn.Linear(8, 2).bfloat16()), (X.bfloat16(),), "bfloat16"),
        (module(lambda: nn.Conv2d(3, 2, 1).double()), (X.double(),), "no float64 kernel of Conv"),
        (lambda x: torch.rand_like(x) + x, (X,), "random numbers"),
        (lambda x: nn.functional.dropout(x, 0.5, True), (X,), "training mode"),
        (module(lambda: nn.LSTM(8, 4, proj_size=2)), (torch.randn(5, 2, 8),), "projection"),
        (lambda x: x.view(torch.int32), (X,), "bits"),
    ],
)
def test_what_has_no_form_is_refused_with_the_reason(function: object, inputs: tuple[Tensor, ...], why: str) -> None:
    program = program_of(function, inputs)  # type: ignore[arg-type]
    (blocker, *_) = CpuBackend().unsupported(program, CpuTarget())
    assert why in blocker.why


def test_a_wrong_converter_is_found_by_the_checker(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(cx: Emitter, x: torch.fx.Node) -> object:
        return cx.op("Relu", cx.value(x), cx.value(x))

    executor_of(program_of(torch.relu, (X,)))  # loads the converters
    monkeypatch.setitem(CONVERTERS, "aten.relu.default", wrong)
    with pytest.raises(VerifyError, match="DS0501"):
        emit(program_of(torch.relu, (X,)))


def test_a_failing_converter_is_reported_with_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(cx: Emitter, x: torch.fx.Node) -> object:
        raise KeyError("mode")

    executor_of(program_of(torch.relu, (X,)))  # loads the converters
    monkeypatch.setitem(CONVERTERS, "aten.relu.default", failing)
    with pytest.raises(VerifyError, match=r"(?s)DS0502.*aten\.relu.*KeyError"):
        emit(program_of(torch.relu, (X,)))


def test_emit_reports_its_progress() -> None:
    seen: list[int] = []
    options = EmitOptions(progress=lambda done, total, what: seen.append(done))
    CpuBackend().emit(program_of(torch.relu, (X,)), CpuTarget(), options)
    assert seen == [0, 1, 2]
