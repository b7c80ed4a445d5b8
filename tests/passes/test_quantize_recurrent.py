"""Recurrent layers that were quantised compute in float what they compute on integers, over long sequences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import dsopt
from dsopt.ops.integer.recurrent import SIGMOID, TANH, interpolate
from dsopt.ops.recurrent import gate_values
from dsopt.passes.base import PassContext, PassManager, parse_pipeline

STEPS, FEATURES, HIDDEN = 80, 5, 16


class Sequence(nn.Module):
    def __init__(self, recurrent: nn.LSTM | nn.GRU) -> None:
        super().__init__()
        self.recurrent = recurrent

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.recurrent(x)[0]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_long_sequence_is_the_same_in_float_and_on_integers(kind: type[nn.LSTM | nn.GRU], bits: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = Sequence(kind(FEATURES, HIDDEN, batch_first=True)).eval()
        if kind is nn.LSTM:
            # a cell that forgets little sums the rounding of all steps
            model.recurrent.bias_ih_l0.data[HIDDEN : 2 * HIDDEN] += 4.0
        x = torch.randn(128, STEPS, FEATURES)
    program = dsopt.capture(model, (x[:2],), {"x": {0: "batch"}})
    passes = parse_pipeline(f"quantize{{weights={bits}}}")
    rounded, _ = PassManager(passes).run(program, PassContext(calibration=({"x": x},)))
    lowered, _ = PassManager(parse_pipeline("lower-integer,fold-constants,remove-dead-code")).run(rounded)
    assert any("q_lstm" in str(node.target) or "q_gru" in str(node.target) for node in lowered.graph.nodes)
    wanted, got = (each.run(x)[0] for each in (rounded, lowered))
    (output,) = rounded.outputs
    step = output.args[1]
    differences = torch.round((wanted - got).abs() / step)
    assert differences.max() <= 1
    # sums of float32 may lie on the other side of the middle between two steps
    assert (differences > 0).float().mean() < 1e-3


def test_gates_have_in_float_what_their_tables_say_and_the_gradient_of_the_functions() -> None:
    places = np.arange(-(1 << 15), 1 << 15)
    for name, table, function in (("sigmoid", SIGMOID, torch.sigmoid), ("tanh", TANH, torch.tanh)):
        assert np.array_equal(gate_values(name).numpy(), interpolate(table, places))
        real = function(torch.from_numpy(places / 4096.0)).numpy()
        # (1/32)^2 / 8 of the second derivative, which is at most 0.77, and half a step of either rounding
        assert np.abs(gate_values(name).numpy() / 32768.0 - real).max() < 0.77 / 1024 / 8 + 1 / 32768


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_prepared_layer_learns_in_the_direction_of_the_float_one(kind: type[nn.LSTM | nn.GRU]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = Sequence(kind(FEATURES, HIDDEN, batch_first=True))
        x, target = torch.randn(16, 12, FEATURES), torch.randn(16, 12, HIDDEN)
    program = dsopt.capture(model, (x[:2],), {"x": {0: "batch"}})
    context = PassContext(calibration=({"x": x},))
    prepared, _ = PassManager(parse_pipeline("quantize-prepare")).run(program, context)
    trained = prepared.module()
    for each in (model, trained):
        (each(x) - target).square().mean().backward()
    name = "recurrent.weight_hh_l0"
    ours = trained.weights_by_name()[name].grad
    theirs = dict(model.named_parameters())[name].grad
    cosine = torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), 0)
    assert cosine > 0.99
