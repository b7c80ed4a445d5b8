"""One rounding from training to integers: three forms of a program, over generated shapes and values, at 8 and 4 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from dsopt.frontend.export import export_module
from dsopt.ir import Program
from dsopt.ir.interpret import evaluate
from tests.passes.quantize.programs import DSOPT, Function, float_operators, result_step, stages, values

FEW = settings(max_examples=25, phases=[Phase.explicit, Phase.generate])


def _captured(function: Any, modules: list[nn.Module], x: Tensor) -> tuple[Program, list[dict[str, Tensor]]]:
    program = export_module(Function(function, *modules).eval(), (x,))
    return program, [{program.signature.inputs[0].name: x}]


def _scaled(module: nn.Module, factor: float) -> nn.Module:
    """Let the channels of a weight differ, as trained ones do."""
    with torch.no_grad():
        for name, value in module.named_parameters():
            spread = torch.exp(torch.randn(value.shape[0])) * factor
            value.mul_(spread.reshape(-1, *[1] * (value.dim() - 1)) if name == "weight" else factor)
    return module


def _check(program: Program, data: list[dict[str, Tensor]], options: str) -> None:
    prepared, converted, lowered, _ = stages(program, data, options)
    assert float_operators(lowered) == []
    (batch,) = data
    step = result_step(converted)
    simulated, stored, integer = (values(each, batch)[0] for each in (prepared, converted, lowered))
    _same_but_for_biases(prepared, converted, simulated, stored, step)
    assert np.abs(np.rint((stored - integer) / step)).max(initial=0) <= 1


def _same_but_for_biases(prepared: Program, converted: Program, simulated: Any, stored: Any, step: float) -> None:
    """Biases become whole numbers of products' steps, and a norm that is folded multiplies in another order; no more may differ."""
    has_bias = any("bias" in name and name.endswith(".int32") for name in converted.weights)
    has_norm = any(node.target is torch.ops.aten.batch_norm.default for node in prepared.graph.nodes)
    if has_bias or has_norm:
        assert np.abs(np.rint((simulated - stored) / step)).max(initial=0) <= 1
    else:
        assert np.array_equal(simulated, stored)


options_of_weights = st.sampled_from(
    ["weights=8", "weights=4", "weights=4,per=group,group=3", "weights=8,per=group,group=2", "weights=4,per=tensor"]
)


@FEW
@given(
    seed=st.integers(0, 10_000),
    channels=st.integers(1, 5),
    out=st.integers(1, 4),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    kind=st.sampled_from(["plain", "depthwise", "transposed"]),
    norm=st.booleans(),
    clamp=st.sampled_from(["none", "relu", "relu6"]),
    bias=st.booleans(),
    size=st.floats(1e-3, 1e3),
    options=options_of_weights,
)
def test_convolutions(
    seed: int, channels: int, out: int, kernel: tuple[int, int], stride: int, kind: str, norm: bool, clamp: str, bias: bool,
    size: float, options: str,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    groups = channels if kind == "depthwise" else 1
    made = nn.ConvTranspose2d if kind == "transposed" else nn.Conv2d
    conv = made(channels, out * groups, kernel, stride=stride, padding=(kernel[0] // 2, 0), groups=groups, bias=bias)
    after = {"none": lambda x: x, "relu": F.relu, "relu6": F.relu6}[clamp]
    norms = [_normed(out * groups)] if norm else []
    x = torch.randn(2, channels, 5, 4) * size

    def run(*parts: Any) -> Any:
        *modules, value = parts
        for module in modules:
            value = module(value)
        return after(value)

    program, data = _captured(run, [_scaled(conv, 1 / size), *norms], x)
    _check(program, data, options)


def _normed(channels: int) -> nn.Module:
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        norm.weight.uniform_(-1.5, 1.5)
        norm.bias.normal_()
        norm.running_mean.normal_()  # type: ignore[union-attr]
        norm.running_var.uniform_(0.01, 4)  # type: ignore[union-attr]
    return norm


@FEW
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 4),
    inputs=st.integers(1, 40),
    outputs=st.integers(1, 6),
    bias=st.booleans(),
    size=st.floats(1e-3, 1e3),
    options=options_of_weights,
)
def test_linear_layers(seed: int, rows: int, inputs: int, outputs: int, bias: bool, size: float, options: str) -> None:
    torch.manual_seed(seed)
    linear = _scaled(nn.Linear(inputs, outputs, bias=bias), 1 / size)
    _check(*_captured(lambda each, x: each(x), [linear], torch.randn(rows, inputs) * size), options)


@FEW
@given(
    seed=st.integers(0, 10_000),
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    size=st.floats(1e-2, 1e2),
    offset=st.floats(-3, 3),
    name=st.sampled_from(["softmax", "norm", "mean", "sum", "product", "own product", "square", "gelu", "cat"]),
)
def test_operators_without_weights(seed: int, shape: list[int], size: float, offset: float, name: str) -> None:
    torch.manual_seed(seed)
    x = (torch.randn(shape) + offset) * size
    other = torch.randn(shape[-1:])
    function = {
        "softmax": lambda x: x.softmax(-1),
        "norm": lambda x: F.layer_norm(x, x.shape[-1:]),
        "mean": lambda x: x.mean(0),
        "sum": lambda x: x + other,
        "product": lambda x: x * other,
        "own product": lambda x: x @ x.transpose(-1, -2),
        "square": lambda x: x * x,
        "gelu": F.gelu,
        "cat": lambda x: torch.cat([x, -0.3 * x], 0),
    }[name]
    _check(*_captured(function, [], x), "")


def test_a_norm_rounds_as_floats_do() -> None:
    """It keeps enough bits below a step: with 8, rounding twice gave the higher of two integers in one of 500 results."""
    torch.manual_seed(0)
    norm = nn.LayerNorm(64)
    nn.init.normal_(norm.bias)
    program, data = _captured(lambda each, x: each(x), [_scaled(norm, 1.0)], 2 * torch.randn(1 << 12, 64))
    _, converted, lowered, _ = stages(program, data, "")
    stored, integer = (values(each, data[0])[0] for each in (converted, lowered))
    assert np.sum(stored != integer) <= 5  # of 262,144


@FEW
@given(
    seed=st.integers(0, 10_000), bits=st.sampled_from([8, 4]), values_of=st.sampled_from(["normal", "large", "edges"])
)
def test_identical_integers_in_give_at_most_one_step_between_each_layer_s_forms(
    seed: int, bits: int, values_of: str
) -> None:
    """Feed every layer of a net the integers that the lowered program has there, and compare what the layer makes of them."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), nn.ReLU6(),
        nn.Conv2d(4, 6, 1), nn.Hardswish(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, 5), nn.Softmax(-1),
    ).eval()  # fmt: skip
    x = {
        "normal": torch.randn(3, 2, 8, 8),
        "large": torch.randn(3, 2, 8, 8) * 1e4,
        "edges": torch.randn(3, 2, 8, 8).sign(),
    }[values_of]
    program = export_module(net, (x,))
    data = [{program.signature.inputs[0].name: x}]
    _, converted, lowered, _ = stages(program, data, f"weights={bits}")
    integers = _integers(lowered, data[0])
    differences = _differences(converted, data[0], integers)
    assert len(differences) == 8  # the input, four layers with weights, and three without
    assert max(differences) <= 1


def _is_rounding(node: fx.Node) -> bool:
    return str(node.target).startswith("dsopt.q")


def _integers(lowered: Program, batch: dict[str, Tensor]) -> list[Tensor]:
    """Return what each integer operator gives, in order."""
    found: list[Tensor] = []
    bound = lowered.bind(tuple(batch.values()))
    evaluate(lowered.graph, bound, lambda node, value: found.append(value) if _is_rounding(node) else None)
    return found


def _differences(converted: Program, batch: dict[str, Tensor], integers: list[Tensor]) -> list[int]:
    """Run the float layers, each on the integers given, and return how far each rounding is from the next of them."""
    differences: list[int] = []

    def replay(*arguments: Any) -> Tensor:
        given = integers[len(differences)]
        differences.append(int((DSOPT.quantize(*arguments).int() - given.int()).abs().max()))
        return given

    with torch.no_grad():
        evaluate(converted.graph, converted.bind(tuple(batch.values())), None, {DSOPT.quantize.default: replay})
    assert len(differences) == len(integers)
    return differences
