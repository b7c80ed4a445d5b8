"""bias-correction: against means computed outside."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dsopt import PassContext, PassManager, capture, parse_pipeline
from dsopt.errors import UsageError
from tests.passes.quantize.prepared import images, layers, net, passed


@pytest.mark.parametrize("before", ["", ",adaptive-rounding{iterations=20}", ",bias-correction"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_results_of_every_layer_have_the_mean_of_the_float_ones(bias: bool, before: str) -> None:
    """Whatever weights and biases were changed before: the float program is the one that was captured."""
    x = images()
    program, corrected, records = passed(net(bias=bias), x, f"{before},bias-correction")
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


def test_what_was_replaced_is_dropped_when_integers_are_made() -> None:
    _, converted, _ = passed(net(), images(), ",adaptive-rounding{iterations=5},bias-correction,quantize-convert")
    assert not [name for name in converted.weights if "in_float" in name]


def test_weights_that_are_computed_and_other_kinds_of_layers_are_named() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.line = nn.LSTM(4, 4, batch_first=True), nn.Linear(4, 4)

        def forward(self, input: Tensor) -> Tensor:
            y = self.line(self.lstm(input)[0])
            return torch.nn.functional.linear(y, y[0] * 2)

    torch.manual_seed(0)
    x = torch.randn(24, 4, 4)
    for name in ("bias-correction", "adaptive-rounding{iterations=5}"):
        *_, records = passed(Other().eval(), x, f",{name}")
        skips = " ".join(records[-1].skips)
        assert "its weight is computed, not stored" in skips
        assert "of convolutions and linear layers" in skips
        assert len(records[-1].changes) == 1


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


@pytest.mark.parametrize("name", ["bias-correction", "adaptive-rounding"])
def test_batch_norms_have_to_be_folded_first(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    with pytest.raises(UsageError, match="DS0334: a batch norm still follows a rounded weight"):
        passed(model.eval(), images(), f",{name}")
