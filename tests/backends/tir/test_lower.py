"""What lowering makes of a program: names, aliases, values written over, blockers; not the numbers, which test_ops.py compares."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dsopt
from dsopt.backends.tir.lower import blockers, lower
from dsopt.backends.tir.registry import LOWERINGS, identifier
from dsopt.ir import Program
from dsopt.passes.base import PassManager, parse_pipeline
from tests.backends.tir.host_runner import errors_on_host, relative_error, run_on_host

Capture = Callable[..., Program]


def test_views_that_move_no_bytes_cost_no_kernel(capture_function: Capture) -> None:
    program = capture_function(
        lambda x: x.flatten(1).view(2, 3, 4).unsqueeze(0).squeeze(0).reshape(6, 4).contiguous().clone().relu(),
        torch.randn(2, 12),
    )
    loops = lower(program)
    assert [kernel.name for kernel in loops.kernels] == ["net_relu"]
    assert loops.root(loops.kernels[0].inputs[0]).name == "x"


def test_a_transpose_is_one_copy(capture_function: Capture) -> None:
    loops = lower(capture_function(lambda x: x.transpose(0, 1).reshape(3, 2, 4) + 1, torch.randn(4, 3, 2)))
    assert [kernel.name for kernel in loops.kernels] == ["net_transpose", "net_add"]


def test_kernels_and_weights_are_named_after_the_users_modules() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU())).eval()
    loops = lower(dsopt.capture(model, (torch.randn(1, 4),)))
    assert [kernel.name for kernel in loops.kernels] == ["layer_0_linear", "layer_1_0_linear", "layer_1_1_relu"]
    assert loops.kernels[1].inputs[1:] == ("layer_1_0_weight", "layer_1_0_bias")
    assert [kernel.multiply_adds for kernel in loops.kernels] == [16, 16, 0]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("features.0.conv", "features_0_conv"),
        ("0.weight", "layer_0_weight"),
        ("a-b c", "a_b_c"),
        ("...", "value"),
        ("größe", "gr_e"),
    ],
)
def test_any_name_becomes_a_c_identifier(text: str, name: str) -> None:
    assert identifier(text) == name


def test_a_value_nobody_reads_again_is_written_over(capture_function: Capture) -> None:
    loops = lower(capture_function(lambda x: (x * 2).relu() + 1, torch.randn(5)))
    assert [kernel.outputs for kernel in loops.kernels] == [("net_mul",)] * 3
    assert [kernel.inputs for kernel in loops.kernels] == [("x",), (), ()]


def test_a_value_that_is_read_again_is_kept(capture_function: Capture, tmp_path: Path) -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        y = x * 2
        z = y.relu()
        return z + y, y.view(-1).exp() + z.view(-1)

    x = torch.randn(2, 3)
    program = capture_function(function, x)
    assert max(errors_on_host(program, (x,), tmp_path)) <= 1e-6


def test_an_operand_seen_through_another_view_is_not_written_over(capture_function: Capture, tmp_path: Path) -> None:
    x = torch.randn(3, 3)
    program = capture_function(lambda x: (y := x * 2).view(9)[:3] + (y + y.view(9).view(3, 3).t()).sum(0), x)
    assert max(errors_on_host(program, (x,), tmp_path)) <= 1e-6


def test_an_index_out_of_range_touches_no_foreign_memory(capture_function: Capture, tmp_path: Path) -> None:
    table = torch.randn(4, 2)
    program = capture_function(
        lambda i, t: (F.embedding(i, t), t[i], t.index_copy(0, i[:1], t[:1])), torch.tensor([1, 0]), table
    )
    outputs, _ = run_on_host(program, (torch.tensor([99, -77]), table), tmp_path)
    np.testing.assert_array_equal(outputs[0], table.numpy()[[3, 0]])


def test_states_are_stepped_and_may_be_updated_in_place(counter_program: Program, tmp_path: Path) -> None:
    x = torch.randn(2, 3)
    loops = lower(counter_program)
    assert loops.root(loops.states[0].update).name == loops.states[0].buffer
    outputs, states = run_on_host(counter_program, (x,), tmp_path, steps=3)
    np.testing.assert_allclose(states["total"], 3 * x.sum(0).numpy(), rtol=1e-6)
    np.testing.assert_allclose(outputs[0], 6 * x.sum(0).numpy(), rtol=1e-6)


def test_every_operator_without_a_loop_form_is_named(capture_function: Capture) -> None:
    program = capture_function(lambda x: (torch.fft.rfft(x).real, torch.linalg.inv(x), x.relu()), torch.randn(3, 3))
    found = blockers(program)
    assert {blocker.op.split(".")[1] for blocker in found} == {"fft_rfft", "linalg_inv"}
    with pytest.raises(ValueError, match="fft_rfft"):
        lower(program)


def test_an_operator_that_torch_writes_in_simpler_ones_is_lowered_through_them(
    capture_function: Capture, tmp_path: Path
) -> None:
    a, b = torch.randn(3, 4), torch.randn(4, 2)
    assert "aten.tensordot.default" not in LOWERINGS
    program = capture_function(lambda a, b: torch.tensordot(a, b, dims=1), a, b)
    assert max(errors_on_host(program, (a, b), tmp_path)) <= 1e-6


ACTIVATIONS = [
    nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.5, 0.7), nn.LeakyReLU(0.2), nn.ELU(0.8), nn.Hardswish(), nn.Hardsigmoid(), nn.Sigmoid(),
    nn.Tanh(), nn.GELU(), nn.GELU(approximate="tanh"), nn.SiLU(),
]  # fmt: skip


class Fused(nn.Module):
    """Each activation after a convolution, a transposed one, a linear layer and an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(2, 2, 3, padding=1, groups=2) for _ in ACTIVATIONS)
        self.transposed = nn.ModuleList(nn.ConvTranspose2d(2, 2, 2) for _ in ACTIVATIONS)
        self.linears = nn.ModuleList(nn.Linear(4, 4) for _ in ACTIVATIONS)
        self.activations = nn.ModuleList(ACTIVATIONS)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        results: list[Tensor] = []
        for number, activation in enumerate(self.activations):
            for layer in (self.convolutions[number], self.transposed[number], self.linears[number]):
                results.append(activation(layer(x)))
            results.append(activation(x + results[-1]))
        return tuple(results)


def test_every_activation_is_right_inside_the_layer_before_it(tmp_path: Path) -> None:
    x = torch.randn(1, 2, 4, 4) * 2
    program, _ = PassManager(parse_pipeline("canonicalize,fuse-activation")).run(dsopt.capture(Fused().eval(), (x,)))
    fused = [node for node in program.graph.nodes if str(node.target).startswith("dsopt.")]
    assert len(fused) == 4 * len(ACTIVATIONS)
    assert max(errors_on_host(program, (x,), tmp_path)) <= 1e-5


def test_the_judge_tells_right_from_wrong() -> None:
    right = np.array([1.0, -2.0, np.inf, np.nan], np.float32)
    assert relative_error(right, right) == 0.0
    assert relative_error(np.array([1.0, -2.0, np.inf, 0.0], np.float32), right) == float("inf")
    assert relative_error(np.array([1.2, -2.0, np.inf, np.nan], np.float32), right) == pytest.approx(0.1, rel=1e-5)
    assert relative_error(np.array([1]), np.array([2])) == 1.0
