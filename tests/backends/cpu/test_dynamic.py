"""Linear layers that round activations when they run: ONNX Runtime against the operator, the size of the file, a transformer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

import dsopt
from dsopt.frontend.export import export_module
from dsopt.ir import Program
from dsopt.ir.interpret import evaluate
from dsopt.passes.base import PassManager, parse_pipeline
from models.bert import bert
from tests.backends.cpu.harness import emit, executor_of, run
from tests.backends.cpu.quantized import model_bytes, operators, stored_bytes
from tests.passes.test_quantize_dynamic import noise_ratio

PASSES = "canonicalize,fold-constants,quantize-dynamic{weights=%d,activations=%s}"


def rounded(module: nn.Module, x: Tensor, weights: int = 8, activations: str = "row") -> Program:
    dynamic = {next(iter(module.forward.__code__.co_varnames[1:2])): {0: "batch"}} if x.dim() > 1 else None
    program = export_module(module, (x,), None, dynamic)
    return PassManager(parse_pipeline(PASSES % (weights, activations))).run(program)[0]


@given(
    st.lists(st.integers(1, 5), min_size=0, max_size=2), st.integers(1, 300), st.integers(1, 40), st.booleans(),
    st.sampled_from([4, 8]), st.sampled_from(["row", "tensor"]), st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=40, deadline=None, derandomize=True)
def test_onnx_runtime_computes_what_the_operator_says(
    rows: list[int], K: int, N: int, has_bias: bool, weights: int, activations: str, seed: int
) -> None:
    torch.manual_seed(seed)
    layer = nn.Linear(K, N, bias=has_bias)
    x = torch.randn(3, *rows, K)
    x[0] = 0
    program = rounded(layer, x, weights, activations)
    executor = executor_of(program)
    for inputs in (x, x[:1], torch.cat([x, 100 * x])):
        (got,), (want,) = run(executor, program, (inputs,)), program.run(inputs)
        scale = want.double().abs() + (2 * layer.bias.double().abs() if has_bias else 0)
        # the integers are the same; three float32 operations follow on either side, each rounded by half of 2^-23
        assert ((got.double() - want.double()).abs() <= 6 * 2.0**-24 * scale).all()


@pytest.mark.parametrize("activations", ["row", "tensor"])
def test_the_product_is_one_of_integers_and_an_activation_is_rounded_once(activations: str, tmp_path: Path) -> None:
    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (layer(x) for layer in self.layers)
            return q * k + v

    program = rounded(Three(), torch.randn(2, 5, 16), 8, activations)
    found = operators(onnx.load_from_string(model_bytes(emit(program))), tmp_path)
    assert found.count("QuantizeLinear") == 1
    assert len([each for each in found if each.startswith("MatMulInteger")]) == 3
    assert "MatMul" not in found


@pytest.mark.parametrize(("weights", "share"), [(8, 4), (4, 8)])
def test_weights_take_a_quarter_or_an_eighth(weights: int, share: int) -> None:
    x = torch.randn(2, 256)
    small = onnx.load_from_string(model_bytes(emit(rounded(nn.Linear(256, 512), x, weights))))
    count = 256 * 512
    kind = onnx.TensorProto.INT8 if weights == 8 else onnx.TensorProto.INT4
    assert stored_bytes(small, kind) == count * 4 // share
    # beside them: a scale and a bias for each output, and the graph
    assert len(small.SerializeToString()) < count * 4 // share + 512 * 8 + 4096


def test_a_transformer_stays_as_close_to_its_float_twin_as_theory_allows() -> None:
    """The noise of every layer is the one expected, and if none were lost on the way, their powers would add up."""
    spec = bert(layers=4, hidden=256, heads=4, vocabulary=500)
    program = dsopt.capture(spec)
    artifact = dsopt.compile(program, "cpu", passes="...,quantize-dynamic")
    assert stored_bytes(onnx.load_from_string(model_bytes(artifact)), onnx.TensorProto.INT8) == 256 * 256 * (4 * 12 + 1)
    inputs = (*spec.args, spec.kwargs["mask"])
    shares: list[float] = []
    values: dict[fx.Node, Any] = {node: program.weight(node) for node in program.placeholders}

    def measure(node: fx.Node, value: Any) -> None:
        values[node] = value
        if node.target is torch.ops.aten.linear.default:
            x, weight = (values[each] for each in node.all_input_nodes[:2])
            shares.append(noise_ratio(x, weight))

    with torch.no_grad():
        evaluate(program.graph, program.bind(inputs), measure)
    assert len(shares) == 4 * 6 + 1
    want = program.run(*inputs)[0].numpy()
    feeds = {each.name: value.numpy() for each, value in zip(program.signature.inputs, inputs, strict=True)}
    got = dsopt.runtime.load(artifact).run(**feeds)
    hidden = np.asarray(got["hidden"], np.float64)
    measured = float(((hidden - want) ** 2).mean() / (want.astype(np.float64) ** 2).mean())
    assert 0 < measured <= sum(shares)
