"""verify compares every output over every run, and names the first layer that differs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dsopt
from dsopt.artifact import Artifact
from dsopt.errors import UsageError
from dsopt.ir import Program, example_inputs
from dsopt.measure.verify import verify
from dsopt.runtime import Session


def test_an_artifact_agrees_with_the_program_it_was_built_from(conv_program: Program, nested_program: Program) -> None:
    for program in (conv_program, nested_program):
        found = verify(dsopt.compile(program, "cpu"), program, bisect=True)
        assert found.agrees
        assert found.first_difference is None
        assert len(found.layers) >= 3
        assert max(layer.relative_error for layer in found.layers) < 1e-5


@pytest.mark.parametrize("layer", ["stem.0", "body.0", "head"])
def test_the_altered_layer_is_named(conv_program: Program, conv_net: nn.Module, layer: str) -> None:
    artifact = dsopt.compile(conv_program, "cpu")
    with torch.no_grad():
        conv_net.get_submodule(layer).weight.mul_(1.25)  # type: ignore[union-attr,operator]
    altered = dsopt.capture(conv_net, (torch.randn(2, 3, 8, 8),), {"x": {0: "batch"}})
    found = verify(artifact, altered, bisect=True)
    assert not found.agrees
    first = found.first_difference
    assert first is not None
    assert first.layer == layer
    assert "conftest.py:" in first.source


class _Late(nn.Module):
    """Goes wrong in the third step only, by a threshold on its state."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self.step = step
        self.register_buffer("total", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.total.add_(1)
        return x + torch.where(self.total > self.step, 1.0, 0.0)


def test_what_passes_change_is_told_apart_from_what_the_code_gets_wrong(capture_function: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(1, 1, 256, 8) for _ in range(3)]
    program = capture_function(lambda q, k, v: F.scaled_dot_product_attention(q, k, v), *inputs)
    sparse = "...,sparse-attention{keys=16,tile=16,max_error=none,at_least=0}"
    found = verify(dsopt.compile(program, "cpu", sparse), program)
    assert found.agrees
    assert found.against == "the model after sparse-attention"
    artifact = dsopt.compile(program, "cpu", sparse)
    (name,) = found.change
    feeds = dict(zip([spec.name for spec in program.signature.inputs], example_inputs(program), strict=True))
    with Session(artifact) as session:
        got = session.run_flat({key: value.numpy() for key, value in feeds.items()})[name]
    want = program.run(*feeds.values())[0].numpy()
    assert found.change[name] == pytest.approx(np.abs(got - want).max() / np.abs(want).max(), rel=1e-3)
    assert found.change[name] > 1e-3
    plain = verify(dsopt.compile(program, "cpu"), program)
    assert (plain.against, plain.change) == ("the model", {})


def test_a_difference_that_only_comes_with_state_is_found_and_named() -> None:
    right, late = (dsopt.capture(_Late(step).eval(), (torch.ones(2),)) for step in (9.0, 2.0))
    artifact = dsopt.compile(right, "cpu")
    found = verify(artifact, late, bisect=True)
    assert not found.agrees
    assert found.outputs[0].worst_run == 2
    assert found.first_difference is not None


def test_given_inputs_are_used_and_the_worst_run_is_told(conv_program: Program) -> None:
    artifact = dsopt.compile(conv_program, "cpu")
    feeds = [{"x": np.full((1, 3, 8, 8), value, np.float32)} for value in (0, 1, 2)]
    assert verify(artifact, conv_program, feeds).runs == 3
    with pytest.raises(UsageError, match="DS0452"):
        verify(artifact, conv_program, [])


def test_nan_in_the_artifact_is_a_difference(capture_function: Callable[..., Any]) -> None:
    artifact = dsopt.compile(capture_function(lambda x: torch.log(x), torch.ones(3)), "cpu")
    program = capture_function(lambda x: torch.log(torch.clamp(x, min=0.5)), torch.ones(3))
    found = verify(artifact, program, [{"x": np.array([-1, 1, 2], np.float32)}])
    assert not found.agrees
    assert found.outputs[0].relative_error == float("inf")


def test_an_artifact_of_another_shape_is_refused(conv_program: Program, counter_program: Program) -> None:
    artifact = dsopt.compile(conv_program, "cpu")
    with pytest.raises(UsageError, match="DS0451"):
        verify(artifact, counter_program)
    renamed = replace_names(artifact)
    with pytest.raises(UsageError, match="inputs of the model: x; of the artifact: image"):
        verify(renamed, conv_program)


def replace_names(artifact: Artifact) -> Artifact:
    inputs = [{**entry, "name": "image"} for entry in artifact.manifest["inputs"]]
    return replace(artifact, manifest={**artifact.manifest, "inputs": inputs})


def test_other_output_names_are_refused_with_both_lists(conv_program: Program) -> None:
    artifact = dsopt.compile(conv_program, "cpu")
    outputs = [{**entry, "name": "logits"} for entry in artifact.manifest["outputs"]]
    renamed = replace(artifact, manifest={**artifact.manifest, "outputs": outputs})
    with pytest.raises(UsageError, match="outputs of the model: output; of the artifact: logits"):
        verify(renamed, conv_program)


def test_nan_in_one_is_named_and_nan_in_both_is_no_comparison(capture_function: Callable[..., Any]) -> None:
    logarithm = capture_function(lambda x: torch.log(x), torch.ones(3))
    clamped = capture_function(lambda x: torch.log(torch.clamp(x, min=0.5)), torch.ones(3))
    artifact = dsopt.compile(logarithm, "cpu")
    (differs,) = verify(artifact, clamped, [{"x": np.array([-1, 1, 2], np.float32)}]).outputs
    assert differs.note == "NaN in one, not in the other"
    assert np.isnan(differs.largest_difference)
    negative = {"x": np.full(3, -1, np.float32)}
    (alike,) = verify(artifact, logarithm, [negative]).outputs
    assert alike.relative_error == 0
    assert alike.note == "nothing compared: it holds only NaN or infinity"
    (some,) = verify(artifact, logarithm, [negative, {"x": np.ones(3, np.float32)}]).outputs
    assert some.note == ""


def test_sizes_are_taken_for_dims_that_vary_and_compared_with_those_fixed(conv_program: Program) -> None:
    artifact = dsopt.compile(conv_program, "cpu")
    assert verify(artifact, conv_program, sizes={"batch": 5}, bisect=True).agrees
    fixed = dsopt.compile(conv_program.specialize({"batch": 3}), "cpu")
    assert verify(fixed, conv_program, sizes={"batch": 3}).agrees
    with pytest.raises(UsageError, match="DS0451"):
        verify(fixed, conv_program, sizes={"batch": 4})
    with pytest.raises(UsageError):
        verify(artifact, conv_program, sizes={"depth": 4})
