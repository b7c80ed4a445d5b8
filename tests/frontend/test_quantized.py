"""Models that other tools have quantised: graphs of torch's quantisers, and ONNX with QuantizeLinear, down to integer operators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.ao.quantization.fx._decomposed
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import dsopt
from dsopt import PassManager, Program, api, parse_pipeline
from dsopt.errors import DsoptError
from models.digits import load_digits as digits
from models.digits import spec, train

Q = torch.ops.quantized_decomposed
DSOPT = torch.ops.dsopt
INTEGERS = "canonicalize,lower-integer,fold-constants,remove-dead-code"


def lowered(program: Program) -> Program:
    return PassManager(parse_pipeline(INTEGERS)).run(program)[0]


def operators(program: Program) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


# ---- graphs of torch's quantisers ----


class Annotated(nn.Module):
    """A convolution with ReLU and a linear layer as PT2E's convert writes them: unsigned activations, weights per channel."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        weight, linear = torch.randn(4, 3, 3, 3), torch.randn(5, 4)
        for name, value in (("weight", weight), ("linear", linear)):
            scale = value.flatten(1).abs().amax(1) / 127
            self.register_buffer(f"{name}_scale", scale)
            self.register_buffer(f"{name}_zero", torch.zeros(len(value), dtype=torch.int64))
            steps = torch.round(value / scale.reshape(-1, *[1] * (value.dim() - 1)))
            self.register_buffer(name, steps.to(torch.int8))
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self._rounded(x, 0.03, 128)
        weight = Q.dequantize_per_channel(self.weight, self.weight_scale, self.weight_zero, 0, -127, 127, torch.int8)
        y = torch.relu(nn.functional.conv2d(x, weight, self.bias, padding=1))
        y = self._rounded(y, 0.07, 0)
        y = self._rounded(y.mean((2, 3)), 0.02, 0)
        linear = Q.dequantize_per_channel(self.linear, self.linear_scale, self.linear_zero, 0, -127, 127, torch.int8)
        return self._rounded(nn.functional.linear(y, linear), 0.05, 120)

    def _rounded(self, x: Tensor, scale: float, zero: int) -> Tensor:
        q = Q.quantize_per_tensor(x, scale, zero, 0, 255, torch.uint8)
        return Q.dequantize_per_tensor(q, scale, zero, 0, 255, torch.uint8)


def test_a_graph_of_torch_s_quantisers_becomes_integer_operators() -> None:
    model = Annotated().eval()
    x = torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    program = dsopt.capture(model, (x,))
    assert not [name for name in operators(program) if "quantized_decomposed" in name]
    wanted = model(x)
    step = 0.05
    assert float((program.run(x)[0] - wanted).abs().max()) <= step * 1.001
    integers = lowered(program)
    assert {"dsopt.q_conv.default", "dsopt.q_mean.default", "dsopt.q_linear.default"} <= operators(integers)
    assert not {"aten.conv2d.default", "aten.linear.default"} & operators(integers)
    assert float((integers.run(x)[0] - wanted).abs().max()) <= step * 1.001


@pytest.mark.mcu
def test_such_a_graph_compiles_for_a_chip() -> None:
    program = dsopt.capture(Annotated().eval(), (torch.randn(1, 3, 5, 5),))
    built = api.build(program, "mcu:cortex-m4")
    assert built.agreement.max_relative_error == 0
    assert "dsopt.q_conv.default" in operators(built.program)


# ---- ONNX ----


@pytest.fixture(scope="module")
def trained() -> Program:
    return dsopt.capture(spec(train(digits(), epochs=3)))


def _exact(model: Path | bytes) -> ort.InferenceSession:
    """Open a model so that sums of products of bytes do not saturate, as they do on CPUs without VNNI unless that is asked for."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("options", ["", "weights=4", "activations=16", "weights=4,per=group,group=16"])
def test_what_the_cpu_backend_writes_is_read_back(trained: Program, options: str, tmp_path: Path) -> None:
    x = digits().x_test
    built = api.build(trained, "cpu", f"...,quantize{{{options}}}", {"x": x[:100].numpy()})
    path = tmp_path / "model.onnx"
    path.write_bytes(built.artifact.files["model.onnx"])
    (wanted,) = _exact(path).run(None, {"x": x[100:].numpy()})
    back = dsopt.load_model(str(path))
    np.testing.assert_allclose(back.run(x[100:])[0].numpy(), wanted, rtol=1e-6, atol=_step(built.program) * 1.001)
    integers = lowered(back)
    np.testing.assert_allclose(integers.run(x[100:])[0].numpy(), wanted, rtol=1e-6, atol=_step(built.program) * 1.001)
    if options in ("", "weights=4"):  # on the cpu groups are folded, and beside 16 bits biases are floats
        assert not {"aten.conv2d.default", "aten.linear.default"} & operators(integers)


def _step(program: Program) -> float:
    """Return the step of the last grid."""
    last = [node for node in program.graph.nodes if node.target is DSOPT.dequantize.default][-1]
    return float(last.args[1])


def _qdq(**changes: Any) -> bytes:
    """Return x -> Q -> DQ -> Gemm(DQ(w)) -> Q -> DQ -> y, with some stored tensors replaced."""
    random = np.random.default_rng(0)
    stored: dict[str, np.ndarray[Any, Any]] = {
        "xs": np.float32(0.02), "xz": np.uint8(128), "ws": np.full(3, 0.01, np.float32), "wz": np.zeros(3, np.int8),
        "w": random.integers(-127, 128, (3, 4)).astype(np.int8), "ys": np.float32(0.03), "yz": np.uint8(100), **changes,
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
        helper.make_node("Gemm", ["xd", "wd"], ["g"], transB=1),
        helper.make_node("QuantizeLinear", ["g", "ys", "yz"], ["gq"]),
        helper.make_node("DequantizeLinear", ["gq", "ys", "yz"], ["y"]),
    ]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", [2, 4]), ("y", [2, 3]))
    ]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()]
    graph = helper.make_graph(nodes, "qdq", ports[:1], ports[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


def test_unsigned_weights_with_zero_points_are_read(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    zeros = np.array([100, 128, 140], np.uint8)
    content = _qdq(w=random.integers(0, 256, (3, 4)).astype(np.uint8), wz=zeros)
    (tmp_path / "m.onnx").write_bytes(content)
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(2))
    (wanted,) = _exact(content).run(None, {"x": x.numpy()})
    program = dsopt.load_model(str(tmp_path / "m.onnx"))
    np.testing.assert_allclose(program.run(x)[0].numpy(), wanted, rtol=0, atol=0.0301)


@pytest.mark.parametrize(
    "changes",
    [
        {"ws": np.full(2, 0.01, np.float32)},
        {"ws": np.full((3, 1), 0.01, np.float32)},
        {"wz": np.zeros(5, np.int8)},
        {"w": np.ones((3, 4), np.float32)},
        {"xz": np.zeros(7, np.uint8)},
    ],
)
def test_grids_that_do_not_fit_are_refused_in_words(changes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(_qdq(**changes))
    with pytest.raises(DsoptError) as caught:
        dsopt.load_model(str(tmp_path / "m.onnx"))
    assert "internal" not in str(caught.value)


def test_damaged_files_are_refused_and_never_crash(tmp_path: Path) -> None:
    content = bytearray(_qdq())
    random = np.random.default_rng(3)
    for _ in range(60):
        broken = bytearray(content)
        for place in random.integers(0, len(broken), random.integers(1, 6)):
            broken[place] = int(random.integers(0, 256))
        (tmp_path / "m.onnx").write_bytes(bytes(broken))
        try:
            dsopt.load_model(str(tmp_path / "m.onnx"))
        except DsoptError as error:
            assert "internal" not in str(error)


def test_four_bit_integers_are_read_two_to_a_byte(tmp_path: Path) -> None:
    values = np.arange(-8, 7, dtype=np.int8).reshape(3, 5)
    packed = helper.make_tensor("w", TensorProto.INT4, (3, 5), values.reshape(-1).tolist())
    nodes = [helper.make_node("DequantizeLinear", ["w", "s"], ["wd"]), helper.make_node("MatMul", ["x", "wd"], ["y"])]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", [2, 3]), ("y", [2, 5]))
    ]
    scale = numpy_helper.from_array(np.float32(0.25), "s")
    graph = helper.make_graph(nodes, "four", ports[:1], ports[1:], [packed, scale])
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
    (tmp_path / "m.onnx").write_bytes(content)
    onnx.checker.check_model(onnx.load_from_string(content))
    x = torch.randn(2, 3)
    wanted = x @ torch.from_numpy(values * 0.25).float()
    torch.testing.assert_close(dsopt.load_model(str(tmp_path / "m.onnx")).run(x)[0], wanted)
