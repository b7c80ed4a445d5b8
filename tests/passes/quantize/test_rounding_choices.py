"""bias-correction and adaptive-rounding: against means and errors computed outside, and against every choice there is."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from dsopt import PassContext, PassManager, PassRecord, Program, capture, parse_pipeline
from dsopt.errors import UsageError

FAKE = torch.ops.dsopt.fake_quantize.default
DEQUANTIZE = torch.ops.dsopt.dequantize_channel.default


def net(seed: int = 0, bias: bool = True) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=bias), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=bias), nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 2, stride=2, bias=bias), nn.Flatten(), nn.Linear(4 * 144, 5, bias=bias),
    ).eval()  # fmt: skip


def images(count: int = 24, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed)).abs()


def passed(model: nn.Module, x: Tensor, passes: str, seed: int = 0) -> tuple[Program, Program, tuple[PassRecord, ...]]:
    program = capture(model, (x[:2],), {"input": {0: "batch"}})
    context = PassContext(calibration=[{"input": x[:10]}, {"input": x[10:]}], seed=seed)
    return program, *PassManager(parse_pipeline(f"canonicalize,quantize-prepare{{weights=4}}{passes}")).run(
        program, context
    )


def layers(program: Program) -> list[str]:
    kinds = ("conv", "linear")
    return [
        node.name
        for node in program.graph.nodes
        if any(kind in str(node.target) for kind in kinds) and node.op == "call_function"
    ]


@pytest.mark.parametrize("bias", [True, False])
def test_the_results_of_every_layer_have_the_mean_of_the_float_ones(bias: bool) -> None:
    x = images()
    program, corrected, records = passed(net(bias=bias), x, ",bias-correction")
    wanted, got = program.trace(x), corrected.trace(x)
    for name, theirs in zip(layers(program), layers(corrected), strict=True):
        error = (got[theirs].double() - wanted[name].double()).movedim(1, 0).flatten(1).mean(1)
        assert float(error.abs().max()) <= 1e-5 * float(wanted[name].abs().max()), name
    assert len(records[-1].changes) == 4


def test_a_shared_bias_is_corrected_for_one_layer_only() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.bias = self.a.bias

        def forward(self, input: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(input)))

    torch.manual_seed(0)
    x = torch.randn(24, 4)
    program, corrected, _ = passed(Twice().eval(), x, ",bias-correction")
    wanted, got = program.run(x)[0], corrected.trace(x)
    last = got[layers(corrected)[-1]]
    assert float((last.double() - wanted.double()).mean(0).abs().max()) <= 1e-5 * float(wanted.abs().max())


def _small(seed: int) -> tuple[float, float, float]:
    """Return the squared errors of a layer of 2 by 4 weights: chosen, nearest, and the best of all choices up or down.

    Each with its best bias.
    """
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 2)).eval()
    x = torch.randn(24, 4) @ torch.randn(4, 4)
    program, nearest, _ = passed(model, x, "")
    _, chosen, _ = passed(model, x, ",adaptive-rounding,bias-correction")
    (rounding,) = (
        node for node in nearest.graph.nodes if node.target is FAKE and nearest.weight(node.args[0]) is not None
    )
    step = nearest.weight(rounding.args[1]).detach().double()[:, None]  # type: ignore[union-attr]
    (layer,) = (node for node in nearest.graph.nodes if node.name in layers(nearest))
    inputs, wanted = nearest.trace(x)[layer.args[0].name].double(), program.run(x)[0].double()  # type: ignore[union-attr]
    weight = model[0].weight.detach().double()

    def error(candidate: Tensor) -> float:
        off = inputs @ candidate.T - wanted
        return float((off - off.mean(0)).square().mean())

    down = torch.floor(weight / step)
    choices = (torch.tensor(ups).reshape(2, 4) for ups in itertools.product((0.0, 1.0), repeat=8))
    best = min(error((down + ups).clamp(-7, 7) * step) for ups in choices)
    ours = float((chosen.trace(x)[layers(chosen)[-1]].double() - wanted).square().mean())
    return ours, error((weight / step).round().clamp(-7, 7) * step), best


def test_choices_of_small_layers_lie_between_the_nearest_and_the_best_there_are() -> None:
    ours, nearest, best = (sum(errors) for errors in zip(*map(_small, range(6)), strict=True))
    assert best <= ours * (1 + 1e-6)
    assert ours < nearest


def test_where_inputs_go_together_choices_make_up_for_each_other() -> None:
    """Let 64 inputs be sums of 4 numbers: roundings of 64 weights then have to agree in 4 directions only."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 4)).eval()
    x = torch.randn(200, 4) @ torch.randn(4, 64)
    program, nearest, _ = passed(model, x, ",bias-correction")
    _, chosen, _ = passed(model, x, ",adaptive-rounding,bias-correction")
    wanted = program.run(x)[0]
    near, ours = (float((each.trace(x)[layers(each)[-1]] - wanted).square().mean()) for each in (nearest, chosen))
    assert ours < near / 2


@pytest.mark.parametrize("bias", [True, False])
def test_choices_bring_results_nearer_and_lie_on_the_grid(bias: bool) -> None:
    x = images()
    program, nearest, _ = passed(net(bias=bias), x, "")
    _, chosen, records = passed(net(bias=bias), x, ",adaptive-rounding{iterations=200}")
    wanted = program.run(x)[0]
    errors = [float((each.run(x)[0] - wanted).square().mean()) for each in (nearest, chosen)]
    assert errors[1] < errors[0]
    rounded = [node for node in chosen.graph.nodes if node.target is FAKE and chosen.weight(node.args[0]) is not None]
    values = {node: node.target(*_stored(chosen, node)) for node in rounded}
    assert len(records[-1].changes) + len(records[-1].skips) == len(rounded) == 4
    for node in rounded:
        (layer,) = node.users
        if any(change.startswith(f"%{layer.name} weight") for change in records[-1].changes):
            torch.testing.assert_close(values[node], chosen.weight(node.args[0]), rtol=1e-6, atol=0)
    converted, _ = PassManager(parse_pipeline("quantize-convert")).run(chosen)
    weights = [node for node in converted.graph.nodes if node.target is DEQUANTIZE and node.args[5] == 4]
    for node in weights:
        value = node.target(*_stored(converted, node))
        assert any(
            value.shape == other.shape and torch.allclose(value, other, rtol=1e-6, atol=0) for other in values.values()
        )
    assert len(weights) == 4


def _stored(program: Program, node: object) -> list[object]:
    arguments = node.args  # type: ignore[attr-defined]
    return [*(program.weight(each) if hasattr(each, "op") else each for each in arguments[:3]), *arguments[3:]]


def test_the_same_seed_gives_the_same_choices() -> None:
    x = images()
    one, two = (passed(net(), x, ",adaptive-rounding{iterations=50}", seed=7)[1] for _ in range(2))
    assert all(torch.equal(one.weights[name], two.weights[name]) for name in one.weights)


def test_dead_weights_and_constant_inputs_do_no_harm() -> None:
    model = net()
    with torch.no_grad():
        model[0].weight[2] = 0  # type: ignore[index,operator]
    x = torch.ones(24, 3, 6, 6)
    for passes in (",bias-correction", ",adaptive-rounding{iterations=20}"):
        program, done, _ = passed(model, x, passes)
        got = done.run(x)[0]
        assert got.isfinite().all()
        assert float((got - program.run(x)[0]).abs().max()) < 1


def test_a_weight_that_two_layers_read_is_not_chosen() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, input: Tensor) -> Tensor:
            return self.a(torch.relu(self.a(input)))

    *_, records = passed(Tied().eval(), torch.randn(24, 4), ",adaptive-rounding")
    assert all("read by another layer too" in skip for skip in records[-1].skips)
    assert records[-1].skips


@pytest.mark.parametrize("name", ["bias-correction", "adaptive-rounding"])
def test_what_cannot_be_compared_is_refused(name: str) -> None:
    x = images()
    program = capture(net(), (x[:2],), {"input": {0: "batch"}})
    context = PassContext(calibration=[{"input": x}])
    with pytest.raises(UsageError, match="DS0331: no value of the program is rounded"):
        PassManager(parse_pipeline(name)).run(program, context)
    prepared, _ = PassManager(parse_pipeline("quantize-prepare")).run(program, context)
    with pytest.raises(UsageError, match="needs calibration data"):
        PassManager(parse_pipeline(name)).run(prepared)
    broken = PassContext(calibration=[{"input": x * torch.inf}])
    with pytest.raises(UsageError, match="NaN or infinite on the calibration data"):
        PassManager(parse_pipeline(name)).run(prepared, broken)


@pytest.mark.parametrize("options", ["iterations=0", "learning_rate=0", "learning_rate=2", "iterations=x"])
def test_options_that_mean_nothing_are_refused(options: str) -> None:
    with pytest.raises(UsageError):
        parse_pipeline(f"adaptive-rounding{{{options}}}")
