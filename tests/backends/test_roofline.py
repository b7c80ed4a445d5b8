"""The estimate of what a program takes on a machine with caches, against sums by hand and bytes counted operator by operator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dsopt
from dsopt.backends.roofline import Machine, ram_bytes


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(64, 256), nn.Linear(256, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(torch.relu(self.wide(x)).view(-1, 256)) + 1.0


def test_each_operator_is_bound_by_its_products_or_its_bytes() -> None:
    program = dsopt.capture(Net().eval(), (torch.randn(16, 64),))
    wide, narrow = 16 * 64 * 256, 16 * 256 * 8
    assert Machine(1e6, 1e30, 0).seconds(program) == pytest.approx((wide + narrow) / 1e6)
    moved = [16 * 64 + 256 * 64 + 256 + 16 * 256, 2 * 16 * 256, 16 * 256 + 256 * 8 + 8 + 16 * 8, 2 * 16 * 8]
    assert Machine(1e30, 1e6, 0).seconds(program) == pytest.approx(4 * sum(moved) / 1e6)
    assert Machine(1e30, 1e30, 1).seconds(program) == 4  # the view is none
    both = (
        max(wide / 1e6, 4 * moved[0] / 1e6) + 4 * moved[1] / 1e6 + max(narrow, 4 * moved[2]) / 1e6 + 4 * moved[3] / 1e6
    )
    assert Machine(1e6, 1e6, 0).seconds(program) == pytest.approx(both)


def test_memory_is_weights_and_the_values_alive_at_the_worst_step() -> None:
    program = dsopt.capture(Net().eval(), (torch.randn(16, 64),))
    weights = sum(4 * value.numel() for value in program.weights.values())
    assert ram_bytes(program) == weights + 4 * (2 * 16 * 256)  # relu: its operand and its result; the view shares


@pytest.mark.parametrize(
    "model", ["models.bert:bert", "models.unet:unet", "tests.cli.models:counter", "models.rnn:lstm"]
)
def test_memory_is_never_less_than_what_torch_keeps_alive(model: str) -> None:
    """Run operator by operator, dropping each value after its last reader, and count distinct storages."""
    program = dsopt.load_model(model)
    program = program.specialize(program.example_sizes()) if program.dims else program
    assert ram_bytes(program) >= _storages(program)
    assert ram_bytes(program) <= 1.05 * _storages(program) + 4096


def _storages(program: dsopt.Program) -> int:
    from dsopt.ir import example_inputs

    values: dict[Any, Any] = dict(program.bind(example_inputs(program)))
    last = {each: number for number, node in enumerate(program.graph.nodes) for each in node.all_input_nodes}
    worst = 0
    with torch.no_grad():
        for number, node in enumerate(program.graph.nodes):
            if node.op == "output":
                break
            if node.op == "call_function":
                args, kwargs = torch.fx.map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = node.target(*args, **kwargs)
            alive = [value for each, value in values.items() if program.weight(each) is None]
            tensors = [
                t
                for value in alive
                for t in (value if isinstance(value, (tuple, list)) else [value])
                if isinstance(t, Tensor)
            ]
            worst = max(
                worst, sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
            )
            values = {
                each: v for each, v in values.items() if last.get(each, -1) > number or program.weight(each) is not None
            }
    return worst + sum(value.numel() * value.element_size() for value in program.weights.values() if value.numel())
