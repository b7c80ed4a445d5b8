"""adaptive-rounding: against errors computed outside, and against every choice there is."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from dsopt import PassManager, Program, parse_pipeline
from dsopt.errors import UsageError
from tests.passes.quantize.prepared import images, layers, net, passed

FAKE = torch.ops.dsopt.fake_quantize.default
DEQUANTIZE = torch.ops.dsopt.dequantize_channel.default


def _small(seed: int) -> tuple[float, float, float]:
    """Return the squared errors of a layer of 2 by 4 weights: chosen, nearest, and the best of all choices up or down.

    Each with its best bias.
    """
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 2)).eval()
    x = torch.randn(24, 4) @ torch.randn(4, 4)
    program, nearest, _ = passed(model, x, "")
    _, chosen, _ = passed(model, x, ",adaptive-rounding{iterations=300},bias-correction")
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
    ours, nearest, best = (sum(errors) for errors in zip(*map(_small, range(4)), strict=True))
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


@pytest.mark.parametrize("options", ["", ",per=tensor", ",per=group,group=3", ",power_of_two=true"])
def test_choices_bring_results_nearer_and_lie_on_the_grid(options: str) -> None:
    x, model = images(), net(bias=options == "")
    program, nearest, _ = passed(model, x, "", options=options)
    _, chosen, records = passed(model, x, ",adaptive-rounding{iterations=200}", options=options)
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


def test_a_second_time_makes_nothing_worse() -> None:
    """Have the second choose with so few iterations that it finds nothing good, compared with the same float model."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 4)).eval()
    x = torch.randn(200, 4) @ torch.randn(4, 64)
    chosen = ",adaptive-rounding{iterations=300}"
    _, once, _ = passed(model, x, chosen)
    _, twice, records = passed(model, x, f"{chosen},adaptive-rounding{{iterations=1}}")
    assert "it is rounded as well already" in "".join(records[-1].skips)
    assert torch.equal(twice.run(x)[0], once.run(x)[0])
    _, better, _ = passed(model, x, f",adaptive-rounding{{iterations=1}}{chosen}")
    torch.testing.assert_close(better.weights["0.weight"], once.weights["0.weight"])


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


@pytest.mark.parametrize("options", ["iterations=0", "learning_rate=0", "learning_rate=2", "iterations=x"])
def test_options_that_mean_nothing_are_refused(options: str) -> None:
    with pytest.raises(UsageError):
        parse_pipeline(f"adaptive-rounding{{{options}}}")
