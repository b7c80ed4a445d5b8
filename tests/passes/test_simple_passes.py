"""canonicalize, fold-batch-norm, fold-constants, fuse-activation, remove-dead-code: text, numbers, near misses, composition."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsopt.frontend.export import export_module
from dsopt.ir import Program
from dsopt.passes.base import PassContext, PassManager, PassRecord, parse_pipeline

Capture = Callable[..., Program]
ALL = "canonicalize,fold-batch-norm,fuse-attention,fold-constants,fuse-activation,remove-dead-code"


def _run(program: Program, pipeline: str) -> tuple[Program, tuple[PassRecord, ...]]:
    return PassManager(parse_pipeline(pipeline)).run(program)


def _ops(program: Program) -> list[str]:
    return [
        str(node.target).removeprefix("aten.").removesuffix(".default")
        for node in program.graph.nodes
        if node.op == "call_function"
    ]


def test_the_default_pipeline_shrinks_a_network_and_keeps_its_numbers(
    conv_net: nn.Module, conv_program: Program
) -> None:
    result, _ = _run(conv_program, ALL)
    assert _ops(result) == ["dsopt.conv_act", "dsopt.conv_act", "dsopt.add_act", "mean.dim", "dropout", "linear"]
    x = torch.randn(9, 3, 8, 8)
    torch.testing.assert_close(result.run(x)[0], conv_net(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pipeline", [ALL, "fold-batch-norm", "fuse-activation", "canonicalize", "fold-constants"])
def test_twice_equals_once(conv_program: Program, pipeline: str) -> None:
    once, _ = _run(conv_program, pipeline)
    twice, records = _run(once, pipeline)
    assert twice.text() == once.text()
    assert all(record.changes == () for record in records)


# ---- canonicalize ----


def test_copies_guards_and_reshapes_to_the_same_shape_are_dropped(capture_function: Capture) -> None:
    def function(x: Tensor) -> Tensor:
        y = x.clone().contiguous().reshape(2, 3)[:]
        return y.to(torch.float64).to(torch.float32) + torch.arange(3).to(torch.float32)

    program = capture_function(function, torch.randn(2, 3))
    assert any("_assert_tensor_metadata" in op for op in _ops(program))
    result, _ = _run(program, "canonicalize")
    assert "clone" not in _ops(result)
    assert "reshape" not in _ops(result)
    assert not any("_assert" in op for op in _ops(result))
    x = torch.randn(2, 3)
    assert torch.equal(result.run(x)[0], function(x))


def test_a_slice_that_drops_elements_stays(capture_function: Capture) -> None:
    result, _ = _run(capture_function(lambda x: x[1:], torch.randn(4, 3)), "canonicalize")
    assert _ops(result) == ["slice.Tensor"]


def test_the_default_scale_of_attention_is_frozen(capture_function: Capture) -> None:
    q = torch.randn(1, 2, 5, 16)
    result, records = _run(capture_function(lambda q: F.scaled_dot_product_attention(q, q, q), q), "canonicalize")
    assert "scale=0.25" in result.text()
    assert records[0].changes == ("%scaled_dot_product_attention aten.scaled_dot_product_attention scale=0.25",)


@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (4, 1), (3, 2), (2, 3)])
def test_same_padding_becomes_numbers(kernel: int, dilation: int) -> None:
    model = nn.Conv2d(2, 3, kernel, padding="same", dilation=dilation)
    program = export_module(model, (torch.randn(1, 2, 9, 7),))
    result, _ = _run(program, "canonicalize")
    assert "conv2d.padding" not in _ops(result)
    x = torch.randn(1, 2, 9, 7)
    torch.testing.assert_close(result.run(x)[0], model(x))


# ---- fold-batch-norm ----


def _normalized(layer: nn.Module, channels: int, kind: type[nn.Module]) -> nn.Sequential:
    norm = kind(channels)
    nn.init.normal_(norm.running_mean)  # type: ignore[arg-type]
    nn.init.uniform_(norm.running_var, 0.2, 3)  # type: ignore[arg-type]
    nn.init.normal_(norm.weight)  # type: ignore[arg-type]
    nn.init.normal_(norm.bias)  # type: ignore[arg-type]
    return nn.Sequential(layer, norm).eval()


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (_normalized(nn.Conv1d(3, 4, 3, bias=False), 4, nn.BatchNorm1d), (2, 3, 9)),
        (_normalized(nn.Conv2d(4, 6, 3, groups=2), 6, nn.BatchNorm2d), (2, 4, 9, 9)),
        (_normalized(nn.Conv3d(2, 3, 2), 3, nn.BatchNorm3d), (2, 2, 4, 5, 6)),
        (_normalized(nn.ConvTranspose1d(3, 4, 3), 4, nn.BatchNorm1d), (2, 3, 9)),
        (_normalized(nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2, bias=False), 4, nn.BatchNorm2d), (2, 6, 5, 5)),
        (_normalized(nn.Linear(5, 4), 4, nn.BatchNorm1d), (3, 5)),
    ],
    ids=["conv1d", "grouped", "conv3d", "transposed1d", "transposed2d-grouped", "linear"],
)
def test_batch_norm_folds_into_every_kind_of_layer(model: nn.Module, shape: tuple[int, ...]) -> None:
    program = export_module(model, (torch.randn(shape),))
    result, records = _run(program, "fold-batch-norm")
    assert not any("batch_norm" in op for op in _ops(result))
    assert len(records[0].changes) == 1
    x = torch.randn(shape)
    torch.testing.assert_close(result.run(x)[0], model(x), rtol=1e-5, atol=1e-5)


class _SharedConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


def test_batch_norm_stays_where_its_input_is_used_elsewhere() -> None:
    result, records = _run(export_module(_SharedConv(), (torch.randn(1, 2, 3, 3),)), "fold-batch-norm")
    assert any("batch_norm" in op for op in _ops(result))
    assert "is also used without normalisation" in records[0].skips[0]


def test_batch_norm_after_something_else_stays_with_the_reason() -> None:
    model = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(2)).eval()
    _, records = _run(export_module(model, (torch.randn(1, 2, 3, 3),)), "fold-batch-norm")
    assert "is no convolution or linear layer" in records[0].skips[0]


class _TiedConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)
        nn.init.normal_(self.norm.running_mean)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.conv(x * 2)


def test_a_weight_that_two_layers_share_is_folded_for_one_only() -> None:
    model = _TiedConv().eval()
    result, _ = _run(export_module(model, (torch.randn(1, 2, 3, 3),)), "fold-batch-norm")
    assert not any("batch_norm" in op for op in _ops(result))
    x = torch.randn(1, 2, 3, 3)
    torch.testing.assert_close(result.run(x)[0], model(x))


# ---- fold-constants and dead code ----


def test_what_depends_on_constants_only_is_computed_once(capture_function: Capture) -> None:
    program = capture_function(lambda x: x * torch.arange(3).float().sqrt(), torch.randn(2, 3))
    result, _ = _run(program, "fold-constants")
    assert _ops(result) == ["mul.Tensor"]
    x = torch.randn(2, 3)
    assert torch.equal(result.run(x)[0], x * torch.arange(3).float().sqrt())


def test_a_constant_that_would_explode_is_left_alone(capture_function: Capture) -> None:
    program = capture_function(lambda x: x + torch.ones(1).expand(512, 1024), torch.randn(512, 1024))
    result, records = _run(program, "fold-constants{growth_bytes=4096}")
    assert "expand" in _ops(result)
    assert "would replace" in records[0].skips[0]


def test_random_numbers_are_not_constants(capture_function: Capture) -> None:
    result, _ = _run(capture_function(lambda x: x + torch.rand(3), torch.randn(3)), "fold-constants")
    assert "rand" in _ops(result)


def test_dead_nodes_and_their_weights_go() -> None:
    class Wasteful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.unused(x)
            return self.used(x)

    program = export_module(Wasteful(), (torch.randn(1, 3),))
    result, _ = _run(program, "remove-dead-code")
    assert _ops(result) == ["linear"]
    assert set(result.weights) == {"used.weight", "used.bias"}


# ---- fuse-activation ----

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 2.0),
    "clamp": lambda x: x.clamp(-1, 1),
    "clamp_min": lambda x: x.clamp(min=0),
    "clamp_max": lambda x: x.clamp(max=0.25),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "elu": F.elu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
@pytest.mark.parametrize("kind", ["conv", "transposed", "linear", "add"])
def test_every_activation_fuses_into_every_producer(name: str, kind: str) -> None:
    activation = ACTIVATIONS[name]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2)
            self.transposed = nn.ConvTranspose2d(4, 2, 3, stride=2, output_padding=1)
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            if kind == "add":
                return activation(x + x.flip(0))
            return activation(getattr(self, kind)(x))

    model = Net().eval()
    program = export_module(model, (torch.randn(2, 4, 6, 4),))
    result, _ = _run(program, "canonicalize,fuse-activation")
    wanted = {
        "conv": "dsopt.conv_act",
        "transposed": "dsopt.conv_act",
        "linear": "dsopt.linear_act",
        "add": "dsopt.add_act",
    }[kind]
    assert _ops(result)[-1] == wanted
    x = torch.randn(2, 4, 6, 4)
    assert torch.equal(result.run(x)[0], model(x))


def test_an_activation_stays_where_its_input_is_used_elsewhere(capture_function: Capture) -> None:
    def function(x: Tensor) -> Tensor:
        y = x + 1 * x
        return torch.relu(y) * y

    result, records = _run(capture_function(function, torch.randn(3)), "fuse-activation")
    assert "relu" in _ops(result)
    assert "is also used before the activation" in records[0].skips[0]


def test_an_addition_of_integers_or_with_alpha_is_not_fused(capture_function: Capture) -> None:
    ints = torch.arange(3)
    assert "relu" in _ops(_run(capture_function(lambda x: torch.relu(x + x), ints), "fuse-activation")[0])
    floats = torch.randn(3)
    program = capture_function(lambda x: torch.relu(torch.add(x, x, alpha=2)), floats)
    assert "relu" in _ops(_run(program, "fuse-activation")[0])


def test_a_fused_program_still_trains(conv_program: Program) -> None:
    result, _ = _run(conv_program, ALL)
    module = result.module().train()
    module(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in module.parameters())


def test_stored_integers_are_not_folded_into_floats() -> None:
    program = export_module(nn.Linear(64, 8), (torch.randn(2, 64),))
    calibration = ({"input": torch.randn(16, 64)},)
    context = PassContext(calibration=calibration)
    for passes in ("quantize{weights=4}", "quantize-prepare{weights=4}"):
        rounded, _ = PassManager(parse_pipeline(passes)).run(program, context)
        folded, records = _run(rounded, "fold-constants")
        assert folded.text() == rounded.text()
        assert records[0].changes == ()
    x = torch.randn(2, 64)
    assert torch.equal(folded.run(x)[0], rounded.run(x)[0])


def test_what_integers_are_computed_from_is_folded(capture_function: Capture) -> None:
    def function(x: Tensor) -> Tensor:
        return x + torch.ops.dsopt.dequantize(
            torch.ops.dsopt.quantize(torch.arange(3).float(), 0.5, 0, -128, 127), 0.5, 0
        )

    result, _ = _run(capture_function(function, torch.randn(3)), "fold-constants")
    assert _ops(result) == ["dsopt.dequantize", "add.Tensor"]
    assert torch.equal(result.run(torch.zeros(3))[0], torch.arange(3).float())
