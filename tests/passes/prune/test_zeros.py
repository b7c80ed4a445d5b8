"""What is said to be zero where channels are gone is zero there in a run with their weights at zero; sums over anything else keep all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from dsopt.ir import Program, example_inputs
from dsopt.ir.interpret import evaluate
from dsopt.passes.prune.channels import Channels
from dsopt.passes.prune.inference import AxisInference
from dsopt.passes.prune.report import pinned_lines
from tests.passes.prune.nets import CNNS
from tests.passes.prune.oracle import masked_difference, program_of, pruned
from tests.passes.prune.transformers import IMAGE_NETS, STEP_NETS, TOKEN_NETS, TOKENS, WIDTH

MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "elu + 1": lambda x: F.elu(x) + 1,
    "sigmoid": torch.sigmoid,
    "exp": torch.exp,
    "square": lambda x: x.square(),
    "tanh twice": lambda x: torch.tanh(2 * x),
    "filled": lambda x: x.masked_fill(x < 0, 0.5),
    "chosen": lambda x: torch.where(x > 0, x, 0.1 * x),
    "clamped": lambda x: x.clamp(-1, 1),
    "clamped above": lambda x: x.clamp(0.25, 1),
    "gated": lambda x: x * torch.sigmoid(x) / (1 + x.abs()),
    "length": lambda x: F.normalize(x, dim=-1),
}
KEEPS_ZERO = {"relu", "square", "tanh twice", "chosen", "clamped", "gated", "length"}
"""Those for which f(0) is 0, by hand."""


class LinearAttention(nn.Module):
    """Attention without softmax (Katharopoulos et al. 2020): f(q) times the sum of f(k) v, one head."""

    def __init__(self, function: Callable[[Tensor], Tensor], how: str = "matmul") -> None:
        super().__init__()
        self.function, self.how = function, how
        self.q, self.k, self.v = nn.Linear(WIDTH, 16), nn.Linear(WIDTH, 16), nn.Linear(WIDTH, 16)
        self.out = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.function(self.q(x)), self.function(self.k(x)), self.v(x)
        if self.how == "einsum":
            return self.out(torch.einsum("btd,bde->bte", q, torch.einsum("bsd,bse->bde", k, v)))
        if self.how == "sum":
            return self.out(v * (q * k).sum(-1, keepdim=True))
        return self.out(q @ (k.transpose(1, 2) @ v))


@pytest.mark.parametrize("how", ["matmul", "einsum", "sum"])
@pytest.mark.parametrize("name", MAPS)
def test_queries_and_keys_lose_channels_only_where_zero_stays_zero(name: str, how: str) -> None:
    program = program_of(LinearAttention(MAPS[name], how), torch.randn(2, TOKENS, WIDTH))
    result, _ = pruned(program, "prune{ratio=0.3}" if name in KEEPS_ZERO else "prune{ratio=0.1}")
    assert (result.weights["q.weight"].shape[0] < 16) == (name in KEEPS_ZERO)
    assert result.weights["v.weight"].shape[0] < 16
    assert masked_difference(program, result) <= 1e-10


def test_the_reason_is_told() -> None:
    program = program_of(LinearAttention(MAPS["elu + 1"]), torch.randn(2, TOKENS, WIDTH))
    lines = [line for line in pinned_lines(program) if "without their weights its channels would not be zero" in line]
    assert len(lines) == 1
    assert lines[0].startswith("q (16)")
    assert "test_zeros.py" in lines[0]


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **{f"cnn {name}": (make, (2, 3, 8, 8)) for name, make in CNNS.items()},
    **{f"tokens {name}": (make, (2, TOKENS, WIDTH)) for name, make in TOKEN_NETS.items()},
    **{f"steps {name}": (make, (2, TOKENS, 8)) for name, make in STEP_NETS.items()},
    **{f"images {name}": (make, (2, 3, 8, 8)) for name, make in IMAGE_NETS.items()},
}

NORMALISED = {"cnn standardized", "steps causal"}
"""Their weights go through norms, which are over what is left and not over zeros."""


@pytest.mark.parametrize("name", sorted(set(NETS) - NORMALISED))
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_what_is_said_to_be_zero_is_zero(name: str, seed: int) -> None:
    make, shape = NETS[name]
    torch.manual_seed(0)
    claimed = zeros_of(program_of(make(), torch.randn(shape)), seed)
    assert claimed


def zeros_of(program: Program, seed: int) -> int:
    """Run a program with a third of the channels masked; return how many values with channels were claimed to be zero, and were."""
    inference = AxisInference(program)
    channels = Channels(inference)
    keep = np.ones(channels.count, np.bool_)
    for group in channels.groups:
        keep[group.channels] = np.random.default_rng(seed).random(len(group.channels)) > 0.33
    bound = program.bind(example_inputs(program, seed=seed))
    checked = 0

    def gone(node: fx.Node, index: int) -> Tensor:
        return torch.from_numpy(~channels.mask(inference.dim(node, index), keep))

    def masked(node: fx.Node, value: Tensor) -> Tensor:
        value = value.clone()
        for index, expr in enumerate(inference.axes(node)):
            if inference.holds_channels(expr):
                value.movedim(index, 0)[gone(node, index)] = 0
        return value

    def watch(node: fx.Node, value: Any) -> None:
        nonlocal checked
        if node not in inference.zeros or not inference.has_axes(node) or node.op == "placeholder":
            return
        for index, expr in enumerate(inference.axes(node)):
            if inference.holds_channels(expr):
                assert (value.movedim(index, 0)[gone(node, index)] == 0).all(), f"{node.format_node()} dim {index}"
                checked += 1

    with torch.no_grad():
        weights = {node: masked(node, value) for node, value in bound.items() if program.weight(node) is not None}
        evaluate(program.graph, {**bound, **weights}, watch)
    return checked
