"""cross-layer-equalization: the function stays, to what float64 can tell, and channels come to have equal ranges."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dsopt import PassContext, PassManager, PassRecord, Program, capture, parse_pipeline
from dsopt.errors import UsageError


def equalised(model: nn.Module, x: Tensor, before: str = "") -> tuple[Program, Program, PassRecord]:
    program = capture(model.eval(), (x,))
    first, _ = PassManager(parse_pipeline(f"{before}canonicalize")).run(program)
    second, records = PassManager(parse_pipeline("cross-layer-equalization")).run(first)
    return program, second, records[-1]


def uneven(model: nn.Module, seed: int) -> nn.Module:
    """Give channels weights of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            size = torch.exp(torch.randn(parameter.shape[:1], generator=generator) * 2)
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator) * size.reshape(-1, *[1] * (parameter.dim() - 1))
            )
    return model.double()


@st.composite
def chains(draw: st.DrawFn) -> nn.Module:
    """Convolutions of all kinds with what may stand between them, and a linear layer at the end."""
    channels, parts = 4, []
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["plain", "depthwise", "grouped", "transposed", "transposed grouped"]))
        after = draw(st.sampled_from([2, 4, 6]))
        bias = draw(st.booleans())
        if kind == "plain":
            parts.append(nn.Conv2d(channels, after, 3, padding=1, bias=bias))
        elif kind == "depthwise":
            after = channels
            parts.append(nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=bias))
        elif kind == "grouped":
            parts.append(nn.Conv2d(channels, after, 1, groups=2, bias=bias))
        else:
            parts.append(nn.ConvTranspose2d(channels, after, 2, groups=2 if "grouped" in kind else 1, bias=bias))
        between = draw(st.sampled_from(["none", "relu", "leaky", "max", "average", "relu6"]))
        layers: dict[str, nn.Module] = {
            "relu": nn.ReLU(), "leaky": nn.LeakyReLU(0.1), "max": nn.MaxPool2d(2, 1), "average": nn.AvgPool2d(3, 1, 1), "relu6": nn.ReLU6(),
        }  # fmt: skip
        parts += [layers[between]] if between in layers else []
        parts += [nn.ZeroPad2d((0, 1, 1, 0))] if draw(st.booleans()) else []
        channels = after
    side = draw(st.sampled_from([1, 2]))
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(side), nn.Flatten(), nn.Linear(channels * side**2, 3))


@given(chains(), st.integers(0, 999), st.sampled_from(["", "fuse-activation,"]))
@settings(max_examples=25)
def test_any_chain_computes_what_it_did(model: nn.Module, seed: int, before: str) -> None:
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    program, changed, _ = equalised(uneven(model, seed), x, before)
    wanted, got = program.run(x)[0], changed.run(x)[0]
    assert float((got - wanted).abs().max()) <= 1e-10 * float(wanted.abs().max())


def test_channels_have_the_same_range_on_both_sides() -> None:
    model = uneven(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.LeakyReLU(), nn.Linear(6, 3)), 1)
    _, changed, record = equalised(model, torch.randn(4, 5, dtype=torch.float64))
    weights = [changed.weights[f"{number}.weight"] for number in (0, 2, 4)]
    for first, second in itertools.pairwise(weights):
        torch.testing.assert_close(first.abs().amax(1), second.abs().amax(0), rtol=2e-3, atol=0)
    assert len(record.changes) == 2


def test_a_channel_that_is_spread_over_inputs_moves_as_one() -> None:
    model = uneven(nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 3)), 4)
    _, changed, record = equalised(model, torch.randn(2, 2, 5, 5, dtype=torch.float64))
    first, second = changed.weights["0.weight"], changed.weights["3.weight"]
    torch.testing.assert_close(
        first.abs().amax((1, 2, 3)), second.abs().reshape(3, 4, 9).amax((0, 2)), rtol=2e-3, atol=0
    )
    assert len(record.changes) == 1


class Crossed(nn.Module):
    """Layers of which the second adds up along another axis than the one that the channels of the first are on."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.line, self.other = kind, nn.Linear(4, 4), nn.Linear(4, 4)
        self.conv = nn.Conv1d(4, 4, 1)

    def forward(self, x: Tensor) -> Any:
        """Map (B, 4, 4)."""
        if self.kind == "conv, linear":
            return self.line(F.relu(self.conv(x)))
        if self.kind == "linear, conv":
            return self.conv(F.relu(self.line(x)))
        if self.kind == "linear, pool, linear":
            return self.other(F.avg_pool1d(self.line(x), 3, 1, 1))
        if self.kind == "linear, mean, linear":
            return self.other(self.line(x).mean(2))
        if self.kind == "linear, pad, linear":
            return self.other(F.pad(self.line(x)[..., :3], (1, 0)))
        if self.kind == "conv, ones, conv":
            return self.conv(F.pad(self.conv(x), (1, 0), value=1.0))
        return self.other(self.line(x).transpose(1, 2))


@pytest.mark.parametrize(
    "kind",
    ["conv, linear", "linear, conv", "linear, pool, linear", "linear, mean, linear", "linear, pad, linear", "conv, ones, conv", "turned"],
)  # fmt: skip
def test_channels_on_another_axis_are_left_alone(kind: str) -> None:
    x = torch.randn(3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    program, changed, record = equalised(uneven(Crossed(kind), 5), x)
    assert torch.equal(changed.run(x)[0], program.run(x)[0])
    assert not record.changes


def test_a_batch_norm_between_layers_has_to_be_folded_first() -> None:
    model = uneven(nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)), 6)
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    _, _, record = equalised(model, x)
    assert [skip for skip in record.skips if "a batch norm follows it: run fold-batch-norm first" in skip]
    program, changed, record = equalised(model, x, "fold-batch-norm,")
    assert len(record.changes) == 1
    torch.testing.assert_close(changed.run(x)[0], program.run(x)[0], rtol=1e-10, atol=1e-10)


def test_twice_is_once_and_sizes_may_vary() -> None:
    model = uneven(
        nn.Sequential(nn.Conv1d(3, 5, 3, padding=1), nn.ReLU(), nn.AvgPool1d(3, 1, 1), nn.Conv1d(5, 4, 3, padding=1)), 7
    )
    x = torch.randn(2, 3, 16, dtype=torch.float64)
    program = capture(model.eval(), (x,), {"input": {0: "batch", 2: "length"}})
    once, (record,) = PassManager(parse_pipeline("cross-layer-equalization")).run(program)
    twice, _ = PassManager(parse_pipeline("cross-layer-equalization")).run(once)
    assert len(record.changes) == 1
    for name, value in once.weights.items():
        torch.testing.assert_close(twice.weights[name], value, rtol=1e-12, atol=0)
    longer = torch.randn(5, 3, 31, dtype=torch.float64)
    torch.testing.assert_close(once.run(longer)[0], program.run(longer)[0], rtol=1e-10, atol=1e-10)


def test_a_prepared_program_is_refused() -> None:
    x = torch.randn(8, 5)
    program = capture(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).eval(), (x,))
    passes = parse_pipeline("canonicalize,quantize-prepare,cross-layer-equalization")
    with pytest.raises(UsageError, match=r"DS0333.*rounded already"):
        PassManager(passes).run(program, PassContext(calibration=[{"input": x}]))


def test_dead_channels_stay_as_they_are() -> None:
    model = uneven(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)), 2)
    with torch.no_grad():
        model[0].weight[1] = 0  # type: ignore[index,operator]
        model[2].weight[:, 2] = 0  # type: ignore[index,operator]
    before = [model[0].bias[1].item(), model[0].weight[2].clone()]  # type: ignore[index,union-attr]
    _, changed, _ = equalised(model, torch.randn(4, 5, dtype=torch.float64))
    assert changed.weights["0.bias"][1].item() == before[0]
    assert torch.equal(changed.weights["0.weight"][2], before[1])


class Shared(nn.Module):
    """What may not be touched: a result that is read twice, a weight that is used twice, a bounded activation."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.second, self.kind = nn.Linear(4, 4), nn.Linear(4, 4), kind

    def forward(self, x: Tensor) -> Any:
        y = self.first(x)
        if self.kind == "result":
            return self.second(F.relu(y)) + y
        if self.kind == "weight":
            return self.first(F.relu(y))
        if self.kind == "bounded":
            return self.second(F.hardtanh(y, 0.0, 6.0))
        return self.second(F.gelu(y))


@pytest.mark.parametrize("kind", ["result", "weight", "bounded", "gelu"])
def test_what_is_shared_or_bounded_is_left_alone(kind: str) -> None:
    model = uneven(Shared(kind), 3)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    _, changed, record = equalised(model, torch.randn(2, 4, dtype=torch.float64))
    assert all(torch.equal(changed.weights[name], weights[name]) for name in changed.weights if name in weights)
    assert not record.changes
    assert [skip for skip in record.skips if "read by another layer" in skip] if kind == "weight" else True
