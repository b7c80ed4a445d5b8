"""Quantised programs in ONNX Runtime, layer by layer against the program: at most a step apart on identical integers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import dsopt
from dsopt.ir import example_inputs
from models import build
from tests.backends.cpu.harness import emit
from tests.backends.cpu.quantized import (
    layer_differences,
    model_bytes,
    open_session,
    operators,
    quantised,
    stored_bytes,
)
from tests.backends.cpu.quantized_nets import UNWEIGHTED, WEIGHTED, make

FORMS = [
    "",
    "weights=4",
    "weights=4,per=group,group=4",
    "activations=16",
    "activations=16,weights=4",
    "power_of_two=true",
]
CASES = [(name, options) for name in WEIGHTED for options in FORMS]
CASES += [(name, options) for name in UNWEIGHTED for options in ("", "activations=16")]


@pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{name}-{options or 'int8'}" for name, options in CASES])
def test_every_layer_is_within_a_step_of_the_program(name: str, options: str) -> None:
    net, samples = make(name)
    program = quantised(net, samples[:8], options)
    for is_optimised in (True, False):
        differences = layer_differences(program, samples[8], is_optimised)
        assert len(differences) >= 2
        assert max(differences.values()) <= 1, (is_optimised, differences)


# ---- any sizes and magnitudes ----


@dataclass(frozen=True)
class Sizes:
    """A layer with batch norm and perhaps a ReLU, then a linear one."""

    is_convolution: bool
    groups: int
    inputs: int
    outputs: int
    kernel: int
    stride: int
    has_relu: bool
    magnitude: float
    seed: int

    def module(self) -> nn.Module:
        torch.manual_seed(self.seed)
        C, N = self.groups * self.inputs, self.groups * self.outputs
        relu = nn.ReLU() if self.has_relu else nn.Identity()
        if self.is_convolution:
            first = nn.Conv2d(C, N, self.kernel, self.stride, padding=1, groups=self.groups)
            net = nn.Sequential(first, nn.BatchNorm2d(N), relu, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(N, 3))
        else:
            net = nn.Sequential(nn.Linear(C, N), nn.BatchNorm1d(N), relu, nn.Linear(N, 3))
        norm = net[1]
        for parameter in (norm.running_mean, norm.weight, norm.bias):
            parameter.data.normal_(0, self.magnitude)
        norm.running_var.data.uniform_(0.1, 3)
        return net

    def sample(self) -> Tensor:
        shape = (2, self.groups * self.inputs, *([5, 6] if self.is_convolution else []))
        return torch.randn(shape) * self.magnitude


SIZES = st.builds(
    Sizes,
    st.booleans(),
    *(st.integers(1, largest) for largest in (4, 6, 6, 3, 2)),
    st.booleans(),
    st.sampled_from([1e-3, 1.0, 50.0]),
    st.integers(0, 1000),
)


@given(SIZES, st.sampled_from(["weights=8", "weights=4", "weights=4,per=group,group=2", "weights=8,per=tensor"]))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_layers_of_any_size_are_within_a_step_of_the_program(sizes: Sizes, options: str) -> None:
    net = sizes.module()
    samples = [(sizes.sample(),) for _ in range(5)]
    program = quantised(net, samples[:4], options)
    for is_optimised in (True, False):
        differences = layer_differences(program, samples[4], is_optimised)
        assert max(differences.values()) <= 1, (is_optimised, differences)


# ---- what is in the file, and what ONNX Runtime makes of it ----

LAYERS = [("conv2d", ["QLinearConv", "QLinearConv"]), ("linear", ["QGemm", "QLinearMatMul"])]


@pytest.mark.parametrize(("name", "kernels"), LAYERS)
def test_onnx_runtime_takes_its_integer_kernels(name: str, kernels: list[str], tmp_path: Path) -> None:
    net, samples = make(name)
    for options in ("weights=8", "weights=4"):
        model = onnx.load_from_string(model_bytes(emit(quantised(net, samples[:8], options))))
        assert [each for each in operators(model, tmp_path) if each.startswith("QLinear") or each == "QGemm"] == kernels


def test_weights_are_one_byte_or_half_a_byte_each_in_the_file() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(256, 255), nn.ReLU(), nn.Linear(255, 64))
    samples = [(torch.randn(4, 256),) for _ in range(4)]
    count = 256 * 255 + 255 * 64
    models = {
        options: onnx.load_from_string(model_bytes(emit(quantised(net, samples, options))))
        for options in ("weights=8", "weights=4", "weights=4,per=group,group=32")
    }
    plain = stored_bytes(models["weights=8"], onnx.TensorProto.INT8)
    assert count <= plain <= count + 2 * (255 + 64)  # and a zero point for each channel
    halves = 256 * 255 // 2 + 255 * 64 // 2
    for options in ("weights=4", "weights=4,per=group,group=32"):
        assert stored_bytes(models[options], onnx.TensorProto.INT4) == halves
        assert len(models[options].SerializeToString()) < 0.75 * len(models["weights=8"].SerializeToString())


@pytest.mark.parametrize("options", ["activations=16", "activations=16,weights=4"])
def test_activations_of_16_bits_are_not_rounded_to_8(options: str, tmp_path: Path) -> None:
    """ONNX Runtime would put MatMulNBits in their place, whose activations are of 8 bits."""
    net, samples = make("linear of sequences")
    program = quantised(net, samples[:8], options)
    model = onnx.load_from_string(model_bytes(emit(program)))
    assert "MatMulNBits" not in operators(model, tmp_path)


@pytest.mark.parametrize(
    ("layer", "shape"), [(lambda: nn.Conv2d(6, 6, 3), (4, 6, 9, 9)), (lambda: nn.Linear(6, 6), (4, 6))]
)
def test_a_layer_that_is_kept_in_float_stays_float(
    layer: Callable[[], nn.Module], shape: tuple[int, ...], tmp_path: Path
) -> None:
    """ONNX Runtime would round its weight, since it stands between a DequantizeLinear and a QuantizeLinear."""
    torch.manual_seed(0)
    net = nn.Sequential(layer(), layer(), layer())
    samples = [(torch.randn(shape),) for _ in range(5)]
    program = quantised(net, samples[:4], "keep=1")
    model = onnx.load_from_string(model_bytes(emit(program)))
    found = operators(model, tmp_path)
    assert len([each for each in found if each in ("Conv", "Gemm", "FusedGemm")]) == 1
    assert len([each for each in found if each in ("QLinearConv", "QGemm")]) == 2
    assert max(layer_differences(program, samples[4], True).values()) <= 1


@pytest.mark.parametrize("options", ["weights=8", "weights=4,per=group,group=4", "activations=16", "power_of_two=true"])
@pytest.mark.parametrize("name", ["conv2d with batch norm", "linear of sequences", "causal attention", "lstm", "gru"])
def test_a_quantised_model_compiles_and_agrees(name: str, options: str) -> None:
    net, samples = make(name)
    program = dsopt.capture(net.eval(), samples[0])
    names = [spec.name for spec in program.signature.inputs]
    data = {each: np.stack([sample[number].numpy() for sample in samples]) for number, each in enumerate(names)}
    artifact = dsopt.compile(program, "cpu", passes=f"...,quantize{{{options}}}", data=data, calibration_samples=6)
    assert artifact.manifest["check"]["checked"]
    open_session(onnx.load_from_string(model_bytes(artifact)))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["digits", "kws", "ic", "gru", "lstm", "bert", "gpt", "unet"])
def test_an_example_model_compiles_and_agrees(model: str) -> None:
    program = dsopt.capture(build(model))
    inputs = [example_inputs(program, seed=seed) for seed in range(7)]
    data = [
        {spec.name: value.numpy() for spec, value in zip(program.signature.inputs, each, strict=True)}
        for each in inputs
    ]
    artifact = dsopt.compile(program, "cpu", passes="...,quantize", data=data, calibration_samples=4)
    assert artifact.manifest["check"]["checked"]
