"""Models that magnify rounding are told from code that is wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dsopt
from dsopt.backends.conditioning import own_errors
from dsopt.ir import example_inputs
from dsopt.measure.verify import verify


class Magnifying(nn.Module):
    """The difference of two sums that are equal but for the order of their terms, and a few percent of a thousandth of one."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.first = nn.Linear(512, 64, bias=False)
        self.second = nn.Linear(512, 64, bias=False)
        with torch.no_grad():
            self.second.weight.copy_(self.first.weight.flip(1))

    def forward(self, x: Tensor) -> Tensor:
        whole = self.first(x)
        return whole - self.second(x.flip(1)) + self.share * whole


def program(share: float) -> dsopt.Program:
    torch.manual_seed(0)
    return dsopt.capture(Magnifying(share).eval(), (torch.randn(3, 512),))


def test_what_rounding_alone_moves_is_let_pass_with_a_note() -> None:
    """Order of summation decides over this output: whoever adds otherwise than torch differs."""
    shaky = program(1e-6)
    own = own_errors(shaky, example_inputs(shaky))["output"]
    assert 1e-3 < own < 0.5
    with torch.no_grad():
        x = example_inputs(shaky)[0]
        exact = Magnifying(1e-6).double()
        exact.load_state_dict({name: value.double() for name, value in shaky.weights.items()})
        wanted = exact(x.double())
    got = shaky.run(x)[0].double()
    assert own == pytest.approx(float((got - wanted).abs().max() / wanted.abs().max()), rel=1e-3)
    build = dsopt.api.build(shaky, "cpu")
    if build.agreement.max_relative_error > 1e-4:  # ONNX Runtime may add as torch does
        assert "magnifies rounding" in build.agreement.summary()
    assert verify(build.artifact, shaky).agrees


def test_wrong_code_is_wrong_whatever_the_model_magnifies() -> None:
    shaky, steady = program(1e-6), program(1.0)
    other = dsopt.compile(program(3e-6), "cpu")
    assert not verify(other, shaky).agrees  # three times the output, and the error is beyond all excuse
    changed = dsopt.compile(program(1.01), "cpu")
    assert not verify(changed, steady).agrees
    assert own_errors(steady, example_inputs(steady))["output"] < 1e-5


def test_rounded_programs_are_not_excused() -> None:
    x = np.random.default_rng(0).standard_normal((64, 512), dtype=np.float32)
    quantised = dsopt.api.build(program(1e-6), "cpu", "...,quantize", {"x": x[:63]}).program
    assert own_errors(quantised, example_inputs(quantised)) == {}
