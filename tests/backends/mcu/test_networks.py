"""Whole networks on a desk: whatever hypothesis builds, and the example models, through planner, C and the generated API."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import dsopt
from dsopt.ir import Program, example_inputs
from models import build
from tests.backends.mcu.desk import DeskModel, placed, prepared
from tests.backends.tir.host_runner import relative_error
from tests.passes.test_random_networks import _randomize, networks


def worst_error(program: Program, steps: int = 1) -> float:
    """Return the largest relative error of any output over some runs, states kept between them."""
    with tempfile.TemporaryDirectory() as folder:
        model = DeskModel(program, Path(folder))
        errors, states = [], None
        for step in range(steps):
            inputs = example_inputs(program, seed=step)
            wanted, states = program.run_stateful(inputs, states)
            got = model.run(*(value.numpy() for value in inputs))
            errors += [relative_error(one, other.contiguous().numpy()) for one, other in zip(got, wanted, strict=True)]
    return max(errors)


@given(networks(), st.integers(0, 1000))
@settings(max_examples=12)
def test_any_small_network_agrees_with_eager(model: nn.Module, seed: int) -> None:
    _randomize(model, seed)
    program = dsopt.capture(model, (torch.randn(1, 3, 6, 6),))
    assert worst_error(prepared(program)) <= 1e-5


@pytest.mark.parametrize("name", ["digits", "kws", "ad", "gru", "gpt_decode"])
def test_example_models_agree_with_eager(name: str) -> None:
    assert worst_error(example_program(name), steps=2) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ic", "vww", "lstm", "gpt", "unet"])
def test_larger_example_models_agree_with_eager(name: str) -> None:
    assert worst_error(example_program(name)) <= 1e-5


def example_program(name: str) -> Program:
    program = dsopt.capture(build(name))
    return prepared(program.specialize({dim: max(known.min, 1) for dim, known in program.dims.items()}))


@pytest.mark.parametrize("name", ["digits", "kws", "ic", "vww", "ad", "gru", "gpt_decode", "unet"])
def test_the_arena_of_an_example_model_is_the_least_possible(name: str) -> None:
    plan = placed(example_program(name)).plan
    assert plan.optimal
