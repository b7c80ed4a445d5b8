"""A program that came quantised is compiled like one that is quantised on the way: the runtime may round a value otherwise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dsopt
from dsopt.api import build
from dsopt.errors import CheckError
from dsopt.passes.base import PassContext, PassManager, parse_pipeline


def quantised() -> dsopt.Program:
    """Return a network whose results are so many that some lie next to the middle between two steps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1)).eval()
        x = torch.randn(4, 32, 32, 32)
    program = dsopt.capture(model, (x,))
    names = {program.signature.inputs[0].name: x}
    rounded, _ = PassManager(parse_pipeline("quantize")).run(program, PassContext(calibration=(names,)))
    return rounded


def test_a_few_values_on_the_other_side_of_a_step_are_within_what_rounding_changes() -> None:
    made = build(quantised(), "cpu", ())
    assert made.agreement.max_relative_error is not None
    # a step of the output, so the check had to look at what rounding changes
    assert made.agreement.max_relative_error > 1e-4
    (note,) = made.agreement.notes
    assert "of what quantisation changes" in note


def test_what_is_wrong_by_more_than_rounding_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from dsopt.backends.cpu import CpuBackend

    program = quantised()
    other = program.clone()
    (node,) = [each for each in other.graph.nodes if each is other.outputs[0]]
    node.args = (node.args[0], 1.05 * node.args[1], node.args[2])
    emit = CpuBackend.emit
    monkeypatch.setattr(CpuBackend, "emit", lambda self, program, *rest: emit(self, other, *rest))
    with pytest.raises(CheckError, match="DS0403"):
        build(program, "cpu", ())
