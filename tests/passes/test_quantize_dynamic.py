"""quantize-dynamic: text, numbers, what stays as it is, composition, refusals; and the operator against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import dsopt
from dsopt.errors import UnsupportedOpError, UsageError
from dsopt.frontend.export import export_module
from dsopt.ir import Program
from dsopt.passes.base import PassManager, PassRecord, parse_pipeline


def run(program: Program, pipeline: str = "quantize-dynamic") -> tuple[Program, tuple[PassRecord, ...]]:
    return PassManager(parse_pipeline(pipeline)).run(program)


def operators(program: Program) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


class Mixed(nn.Module):
    """Each way of writing a linear layer, and products that are none."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(8, 6), nn.Linear(6, 4, bias=False)
        self.matrix, self.bias = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(F.gelu(self.first(x)))
        z = torch.addmm(self.bias, y, self.matrix) + y @ self.matrix
        return z @ z.mT


def program() -> Program:
    torch.manual_seed(0)
    return export_module(Mixed(), (torch.randn(3, 8),))


# ---- text ----


def test_every_linear_layer_gets_integers() -> None:
    result, records = run(program())
    dynamic, product = "dsopt.dynamic_linear.default", "aten.matmul.default"
    expected = [dynamic, "aten.gelu.default", dynamic, dynamic, dynamic, "aten.add.Tensor", "aten.mT.default", product]
    assert operators(result) == expected
    text = result.text()
    assert "dsopt.dynamic_linear(%x, @first.weight.int8, @first.weight.scale, @first.bias, 8, True)" in text
    assert "dsopt.dynamic_linear(%1, @head.weight.int8, @head.weight.scale, None, 8, True)" in text
    assert "dsopt.dynamic_linear(%2, @matrix.int8, @matrix.scale, @bias, 8, True)" in text
    assert {name for name in result.weights if name.startswith("matrix")} == {"matrix.int8", "matrix.scale"}
    assert len(records[0].changes) == 4


def test_twice_is_once() -> None:
    once, _ = run(program())
    twice, records = run(once)
    assert twice.text() == once.text()
    assert records[0].changes == ()


# ---- numbers ----


def reference(x: np.ndarray, w: np.ndarray, scale: np.ndarray, bias: np.ndarray | None, per_row: bool) -> np.ndarray:
    """Compute in int64 and float64 what the layer is said to compute; the steps are float32, as they are in every form."""
    largest = np.abs(x).max(-1, keepdims=True) if per_row else np.abs(x).max(keepdims=True)
    step = np.maximum((largest / np.float32(127)).astype(np.float32), np.float32(2.0**-100))
    integers = np.clip(np.rint(x / step), -127, 127).astype(np.int64)
    y = (integers @ w.astype(np.int64).T) * step.astype(np.float64) * scale.astype(np.float64)
    return y if bias is None else y + bias


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(1, 300), st.integers(1, 7), st.booleans(), st.booleans(),
    st.sampled_from([1e-30, 1.0, 1e6]), st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_operator_equals_its_definition(
    rows: list[int], K: int, N: int, per_row: bool, has_bias: bool, magnitude: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    x = (random.standard_normal((*rows, K)) * magnitude).astype(np.float32)
    x.flat[0] = 0
    w = random.integers(-127, 128, (N, K)).astype(np.int8)
    scale = random.uniform(1e-4, 1e-2, N).astype(np.float32)
    bias = random.standard_normal(N).astype(np.float32) if has_bias else None
    tensors = [None if each is None else torch.from_numpy(each) for each in (x, w, scale, bias)]
    got = torch.ops.dsopt.dynamic_linear(*tensors, 8, per_row).numpy()
    want = reference(x, w, scale, bias, per_row)
    # three float32 operations after the exact sum and one before, each rounded by half of 2^-23
    bound = 4 * 2.0**-24 * (np.abs(want) + (0 if bias is None else 2 * np.abs(bias)))
    assert (np.abs(got - want) <= bound + 1e-44).all()


def test_no_rows_and_rows_of_zeros_have_a_result() -> None:
    layer, _ = run(export_module(nn.Linear(4, 3), (torch.randn(2, 4),), None, {"input": {0: "batch"}}))
    (node,) = (node for node in layer.graph.nodes if node.op == "call_function")
    assert str(node.target) == "dsopt.dynamic_linear.default"
    assert torch.equal(layer.run(torch.zeros(5, 4))[0], layer.weights["bias"].expand(5, 3))
    w, s = layer.weights["weight.int8"], layer.weights["weight.scale"]
    assert torch.ops.dsopt.dynamic_linear(torch.zeros(0, 4), w, s, None, 8, True).shape == (0, 3)


def test_a_row_does_not_change_the_rounding_of_another() -> None:
    layer = export_module(nn.Linear(16, 8), (torch.randn(2, 16),))
    x = torch.randn(2, 16)
    louder = torch.stack([x[0], 1000 * x[1]])
    by_row, by_tensor = (run(layer, f"quantize-dynamic{{activations={each}}}")[0] for each in ("row", "tensor"))
    assert torch.equal(by_row.run(x)[0][0], by_row.run(louder)[0][0])
    assert not torch.equal(by_tensor.run(x)[0][0], by_tensor.run(louder)[0][0])


def noise_ratio(x: Tensor, weight: Tensor, levels: int = 127) -> float:
    """Return the share of noise in the power of a layer's result that theory expects.

    Rounding to steps of s adds noise of power s^2 / 12 (Widrow and Kollar 2008, "Quantization Noise", chapter 5), here to each
    activation and each weight, and a sum of products adds up the powers of its terms.
    """
    x, weight = x.detach().double().reshape(-1, x.shape[-1]), weight.detach().double()
    of_x = (x.abs().amax(-1) / levels) ** 2 / 12
    of_w = (weight.abs().amax(-1) / levels) ** 2 / 12
    noise = of_x.mean() * (weight**2).sum(-1).mean() + of_w.mean() * (x**2).sum(-1).mean()
    return float(noise / ((x @ weight.mT) ** 2).mean())


@pytest.mark.parametrize("K", [64, 512])
def test_the_noise_of_a_layer_is_what_theory_says(K: int) -> None:
    torch.manual_seed(K)
    layer = nn.Linear(K, 400, bias=False)
    x = torch.randn(400, K)
    result, _ = run(export_module(layer, (x,)))
    want = layer(x).detach().double()
    measured = float(((result.run(x)[0].double() - want) ** 2).mean() / (want**2).mean())
    # the mean of n squares of normal numbers deviates by sqrt(2 / n) of itself; 160,000 results share 800 rows, each counted once
    deviation = (2 / 800) ** 0.5
    assert abs(measured / noise_ratio(x, layer.weight) - 1) < 4 * deviation


# ---- what stays as it is ----


def test_layers_that_are_kept_say_so() -> None:
    result, records = run(program(), "quantize-dynamic{keep=head}")
    assert operators(result).count("aten.linear.default") == 1
    assert [skip.rpartition(": ")[2] for skip in records[0].skips] == ["it is kept in float, as the option says"]


def test_computed_and_rounded_weights_stay() -> None:
    def product(x: Tensor, w: Tensor) -> Tensor:
        return F.linear(x, w) @ w

    class Function(nn.Module):
        def forward(self, x: Tensor, w: Tensor) -> Tensor:
            return product(x, w)

    result, records = run(export_module(Function(), (torch.randn(2, 3), torch.randn(3, 3))))
    assert records[0].changes == ()
    assert [skip.rpartition(": ")[2] for skip in records[0].skips] == ["its weight is computed or rounded already"]
    assert operators(result) == ["aten.linear.default", "aten.matmul.default"]


def test_a_weight_that_an_embedding_reads_stays_in_the_file_and_that_is_said() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 4)

        def forward(self, ids: Tensor) -> Tensor:
            return F.linear(self.table(ids), self.table.weight)

    result, records = run(export_module(Tied(), (torch.tensor([[1, 2]]),)))
    assert set(result.weights) == {"table.weight", "table.weight.int8", "table.weight.scale"}
    assert records[0].notes[0].endswith("its weight stays in the file as floats, too, for %embedding")


# ---- refusals ----


def test_options_that_mean_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="activations is 'column' and must be one of row, tensor"):
        parse_pipeline("quantize-dynamic{activations=column}")
    with pytest.raises(UsageError, match="weights is 3 and must be one of 4, 8"):
        parse_pipeline("quantize-dynamic{weights=3}")
    with pytest.raises(UsageError, match="keep='tail' names no layer of the model") as caught:
        run(program(), "quantize-dynamic{keep=tail}")
    assert caught.value.code == "DS0310"


@pytest.mark.parametrize("target", ["mcu:cortex-m4", "cuda:sm_90"])
def test_other_targets_are_refused_with_what_to_do(target: str) -> None:
    with pytest.raises(UsageError) as caught:
        dsopt.compile(program(), target, passes="...,quantize-dynamic")
    assert caught.value.code == "DS0350"
    assert "activations cannot be rounded at run time on" in str(caught.value)
    assert '--passes "...,quantize" --data calib.npz' in str(caught.value)
    rounded, _ = run(program())
    with pytest.raises(UnsupportedOpError) as blocked:
        dsopt.compile(rounded, target, passes=())
    assert "cannot run 4 of the program's operators" in str(blocked.value)
