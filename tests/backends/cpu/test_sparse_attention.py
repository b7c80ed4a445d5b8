"""The portable form of sparse attention: ONNX Runtime and onnx's own evaluator against the operator's reference."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx.reference
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dsopt.backends.cpu import CpuBackend
from dsopt.backends.cpu.portable import dense
from dsopt.sparse_schedule import UNITS
from dsopt.target import CpuTarget
from tests.backends.cpu.attentions import ATTENTIONS, Attend
from tests.backends.cpu.harness import Wrapped, assert_close, emit, executor_of, feeds, program_of, run

ROUNDING = {torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 2e-3}


@pytest.fixture(scope="module", autouse=True)
def _without_kernels() -> Iterator[None]:
    """Write the portable form alone: compiling kernels takes long, and these tests do not run them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dsopt.backends.cpu.native.build", lambda config: {})
        yield


def model_of(case: Attend) -> onnx.ModelProto:
    return onnx.load_from_string(emit(program_of(case.module(), case.inputs())).files["model.onnx"])


@pytest.mark.parametrize("name", ATTENTIONS)
def test_onnx_runtime_gives_what_the_reference_gives(name: str) -> None:
    case = ATTENTIONS[name]
    inputs = case.inputs()
    program = program_of(case.module(), inputs)
    assert_close(run(executor_of(program), program, inputs), [case.expected(inputs)], ROUNDING[case.dtype])


@given(
    st.integers(1, 70), st.integers(1, 150), st.sampled_from([(1, 1), (2, 1), (3, 3)]), st.sampled_from(["", "bool", "float"]),
    st.sampled_from(["none", "start", "end"]), st.integers(-1, 40), st.sampled_from(UNITS), st.integers(1, 20), st.integers(0, 6),
    st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=25, deadline=None, derandomize=True)
def test_any_attention(
    T: int, S: int, heads: tuple[int, int], bias: str, causal: str, budget: float, unit: str, tile: int, window: int,
    seed: int,
) -> None:  # fmt: skip
    budget = budget / 40 if unit == "share" else budget
    case = Attend(T, S, *heads, 4, 5, 1, bias, causal=causal, budget=(budget,), unit=unit, tile=tile, window=window,
                  seed=seed)  # fmt: skip
    inputs = case.inputs()
    program = program_of(case.module(), inputs)
    assert_close(run(executor_of(program), program, inputs), [case.expected(inputs)])


@pytest.mark.parametrize(
    "case",
    [
        Attend(63, budget=(4,)),
        Attend(63, budget=(4,), causal="start"),
        Attend(63, H=4, K=2, budget=(4, -1, 0, 4), bias="float", causal="end", window=2),
        ATTENTIONS["plain"],
    ],
)
def test_onnx_itself_gives_what_the_reference_gives(case: Attend) -> None:
    """Its GatherElements, by numpy.choose, takes no list of more than 64."""
    inputs = case.inputs()
    program = program_of(case.module(), inputs)
    model = onnx.load_from_string(emit(program).files["model.onnx"])
    with np.errstate(invalid="ignore"):  # the softmax of a row without any key, which is then replaced
        (got,) = onnx.reference.ReferenceEvaluator(model).run(None, feeds(program, inputs))
    assert_close([torch.from_numpy(np.asarray(got))], [case.expected(inputs)])


@pytest.mark.parametrize("name", ["causal", "bias, causal, grouped", "budgets by head", "all keys"])
def test_the_batch_may_vary(name: str) -> None:
    case = ATTENTIONS[name]
    program = program_of(case.module(), case.inputs(4), case.inputs(6))
    assert program.dims
    executor = executor_of(program)
    for batch in (1, 4, 0):
        inputs = case.inputs(batch)
        assert_close(run(executor, program, inputs), [case.expected(inputs)])


def test_of_equal_scores_the_first_are_found() -> None:
    case = Attend(48, 160, H=1, B=1, D=4, budget=(9,), tile=48)
    q, k, v = case.inputs()
    k = k[:, :, :40].repeat(1, 1, 4, 1)  # each key four times, their values differ
    program = program_of(case.module(), (q, k, v))
    assert_close(run(executor_of(program), program, (q, k, v)), [case.expected((q, k, v))])


def test_logits_of_any_size_are_attended_to() -> None:
    case = Attend(96, 203, H=2)
    for factor in (-1e4, 0.0, 1e4):
        q, k, v = case.inputs()
        k = k + 1.0  # all logits of a query then have one sign, far from those of a node without keys
        inputs = (torch.full_like(q, factor), k, v)
        program = program_of(case.module(), inputs)
        assert_close(run(executor_of(program), program, inputs), [case.expected(inputs)])


def test_dense_heads_are_written_by_parts_of_the_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "SCORES", 1000)
    for case in (
        Attend(103, 61, budget=(-1,)),
        Attend(103, 61, H=4, K=2, budget=(-1,), bias="float", causal="end"),
        Attend(96, 60, budget=(-1,), causal="start"),
    ):
        inputs = case.inputs()
        program = program_of(case.module(), inputs)
        assert {node.op_type for node in model_of(case).functions[0].node} >= {"Scan"}
        assert_close(run(executor_of(program), program, inputs), [case.expected(inputs)])


def sizes(model: onnx.ModelProto) -> list[int]:
    """Return the sizes of all tensors between the nodes of a model, functions inlined."""
    inlined = onnx.inliner.inline_local_functions(model)
    shaped = onnx.shape_inference.infer_shapes(inlined, data_prop=True).graph.value_info
    return [int(np.prod([dim.dim_value for dim in each.type.tensor_type.shape.dim])) for each in shaped]


def test_memory_does_not_grow_with_the_square_of_the_length() -> None:
    largest = []
    for length in (1024, 4096, 16384):
        case = Attend(length, H=1, B=1, budget=(2,), unit="log2", tile=64, causal="start")
        program = program_of(case.module(), case.inputs())
        found = sizes(onnx.load_from_string(emit(program).files["model.onnx"]))
        assert len(found) > 200
        largest.append(max(found))
        assert max(found) < length * length / 4
    assert largest[2] < 4.5 * largest[1]


def test_a_profile_says_which_layer_called_a_function() -> None:
    case = Attend(96, H=2)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Wrapped(case.module()), Wrapped(case.module())

        def forward(self, q: Tensor, k: Tensor) -> Tensor:
            result: Tensor = self.second(self.first(q, k, k), k, k[:, :, :, :8])
            return result

    inputs = (torch.randn(1, 2, 96, 8), torch.randn(1, 2, 96, 8))
    program = program_of(Twice(), inputs)
    layers = executor_of(program).profile(feeds(program, inputs)).layers
    assert {layer.layer for layer in layers} >= {"first", "second"}
    assert not [layer.node for layer in layers if "_inlfunc_" in layer.node]


# ---- the model ----


def test_one_function_stands_for_equal_attentions() -> None:
    case, other = Attend(96, H=2), Attend(96, H=2, window=1)

    def three(q: Any, k: Any, v: Any) -> Any:
        return other.module()(case.module()(q, k, v), k, v) + case.module()(k, q, v)

    q = torch.randn(1, 2, 96, 8)
    program = program_of(three, (q, q + 1, q - 1))
    model = onnx.load_from_string(emit(program).files["model.onnx"])
    assert [each.name for each in model.functions] == ["SparseAttention0", "SparseAttention1"]
    assert {each.domain for each in model.functions} == {"dsopt"}
    assert [node.op_type for node in model.graph.node if node.domain == "dsopt"] == [
        "SparseAttention0", "SparseAttention1", "SparseAttention0",
    ]  # fmt: skip
    assert {node.domain for each in model.functions for node in each.node} == {""}
    assert {each.domain: each.version for each in model.opset_import} == {"": 21, "dsopt": 1}
    assert emit(program).files["model.onnx"] == emit(program).files["model.onnx"]


def test_a_function_that_nothing_calls_is_not_written() -> None:
    case = Attend(96)
    model = onnx.load_from_string(
        emit(program_of(lambda q, k, v: (case.module()(q, k, v), q + 1)[1], case.inputs())).files["model.onnx"]
    )
    assert not model.functions
    assert [each.domain for each in model.opset_import] == [""]


def test_a_length_that_varies_is_refused_with_the_nearest_form() -> None:
    case = Attend(96, causal="start")
    q, k, v = case.inputs()
    other = tuple(each[:, :, :80] for each in (q, k, v))
    (blocker,) = CpuBackend().unsupported(program_of(case.module(), (q, k, v), other), CpuTarget())
    assert "the length of a sparse attention varies" in blocker.why
    assert "--dim" in blocker.fix
