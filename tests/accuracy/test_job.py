"""A program that came quantised is compiled like one that is quantised on the way: the runtime may round a value otherwise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dsopt
from dsopt.api import build
from dsopt.errors import CheckError, UsageError
from dsopt.measure.reference import find_reference
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


def test_code_of_a_pruned_program_is_compared_with_the_pruned_program() -> None:
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 4, 5)).eval()
    x = torch.randn(1, 1, 4, 4)
    program = dsopt.capture(model, (x,))
    built = build(program, "cpu", "canonicalize,prune{ratio=0.5},fold-constants")
    assert built.agreement.max_relative_error is not None
    assert built.agreement.max_relative_error < 1e-5
    pruned, _ = PassManager(parse_pipeline("canonicalize,prune{ratio=0.5}")).run(program)
    torch.testing.assert_close(built.program.run(x)[0], pruned.run(x)[0])
    assert [record.name for record in built.records] == ["canonicalize", "prune", "fold-constants"]
    reference = find_reference(program, built.artifact.manifest, None)
    assert torch.equal(reference.program.run(x)[0], pruned.run(x)[0])
    assert not reference.is_quantised


def test_a_pruned_program_is_quantised_in_the_same_build() -> None:
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 4, 5)).eval()
    program = dsopt.capture(model, (torch.randn(1, 1, 4, 4),))
    data = {"input": torch.randn(24, 1, 4, 4).numpy()}
    whole = build(program, "cpu", "...,quantize", data)
    half = build(program, "cpu", "prune{ratio=0.5},...,quantize", data)
    assert half.records[0].notes[0].startswith("parameters: 485 -> ")
    assert sum(map(len, half.artifact.files.values())) < sum(map(len, whole.artifact.files.values()))


def test_what_was_pruned_by_data_is_found_again_with_the_same_data() -> None:
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 4, 5)).eval()
    x = torch.randn(1, 1, 4, 4)
    program = dsopt.capture(model, (x,))
    data = {"input": torch.randn(24, 1, 4, 4).numpy()}
    built = build(program, "cpu", "prune{ratio=0.5,score=taylor},...", data)
    reference = find_reference(program, built.artifact.manifest, data)
    torch.testing.assert_close(reference.program.run(x)[0], built.program.run(x)[0])
    with pytest.raises(UsageError, match="score=taylor needs data"):
        find_reference(program, built.artifact.manifest, None)
