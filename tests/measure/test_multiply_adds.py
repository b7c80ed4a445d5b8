"""Multiply-adds as torch's own flop counter counts them: two flops each."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dsopt.frontend.export import export_module
from dsopt.ir import Program
from dsopt.ir.multiply_adds import multiply_adds

CASES: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "conv1d": (lambda x, w: F.conv1d(x, w, stride=2), [(2, 3, 17), (5, 3, 4)]),
    "conv2d": (lambda x, w: F.conv2d(x, w, padding=1), [(2, 4, 9, 7), (6, 4, 3, 3)]),
    "grouped": (lambda x, w: F.conv2d(x, w, groups=4), [(1, 4, 9, 7), (8, 1, 3, 3)]),
    "unbatched": (lambda x, w: F.conv2d(x, w), [(4, 9, 7), (6, 4, 3, 3)]),
    "conv3d": (lambda x, w: F.conv3d(x, w), [(1, 2, 5, 6, 7), (3, 2, 2, 2, 2)]),
    "transposed": (lambda x, w: F.conv_transpose2d(x, w, stride=2), [(2, 4, 5, 5), (4, 6, 3, 3)]),
    "linear": (F.linear, [(2, 5, 7), (3, 7)]),
    "matmul": (torch.matmul, [(2, 3, 5, 7), (7, 4)]),
    "bmm": (torch.bmm, [(3, 5, 7), (3, 7, 2)]),
    "mm": (torch.mm, [(5, 7), (7, 2)]),
    "addmm": (torch.addmm, [(5, 2), (5, 7), (7, 2)]),
    "baddbmm": (torch.baddbmm, [(3, 5, 2), (3, 5, 7), (3, 7, 2)]),
    "einsum": (lambda x, y: torch.einsum("bhqd,bhkd->bhqk", x, y), [(2, 3, 5, 8), (2, 3, 7, 8)]),
    "einsum with dots": (lambda x, y: torch.einsum("...ij,jk->...ik", x, y), [(2, 3, 5, 8), (8, 7)]),
}


@pytest.mark.parametrize("case", CASES)
def test_counts_are_half_of_torchs_flops(case: str, capture_function: Callable[..., Program]) -> None:
    function, shapes = CASES[case]
    tensors = [torch.randn(shape) for shape in shapes]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function(*tensors)
    program = capture_function(lambda *args: function(*args), *tensors)
    assert sum(multiply_adds(node) for node in program.graph.nodes) * 2 == counter.get_total_flops()


def test_attention_counts_as_its_two_matrix_products(capture_function: Callable[..., Program]) -> None:
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 4)
    with FlopCounterMode(display=False) as counter:
        torch.matmul(torch.softmax(torch.matmul(q, k.mT), -1), v)
    program = capture_function(lambda q, k, v: F.scaled_dot_product_attention(q, k, v), q, k, v)
    assert sum(multiply_adds(node) for node in program.graph.nodes) * 2 == counter.get_total_flops()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_meet_every_weight_once_a_step(kind: type[nn.Module]) -> None:
    gates = 4 if kind is nn.LSTM else 3
    module = kind(5, 6, num_layers=2, bidirectional=True, batch_first=True)  # type: ignore[call-arg]
    program = export_module(module.eval(), (torch.randn(2, 7, 5),), {}, None)
    weights = 2 * gates * 6 * (5 + 6) + 2 * gates * 6 * (12 + 6)
    assert sum(multiply_adds(node) for node in program.graph.nodes) == 2 * 7 * weights


def test_all_else_counts_nothing(capture_function: Callable[..., Program]) -> None:
    program = capture_function(lambda x: torch.relu(x + 1).sum(), torch.randn(3, 4))
    assert sum(multiply_adds(node) for node in program.graph.nodes) == 0
