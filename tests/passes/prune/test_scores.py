"""Scores say what they claim: magnitudes, distances, and how far outputs move."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dsopt.errors import UsageError
from dsopt.ir import Program
from dsopt.passes.base import PassContext, PassManager, parse_pipeline
from dsopt.passes.prune.channels import Channels
from dsopt.passes.prune.inference import AxisInference
from dsopt.passes.prune.score import SCORES, score_channels
from tests.passes.prune.nets import CNNS
from tests.passes.prune.oracle import masked_difference, program_of
from tests.passes.prune.transformers import TOKEN_NETS, TOKENS, WIDTH


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x))


def scores_of(program: Program, score: str, context: PassContext | None = None) -> tuple[Channels, np.ndarray]:
    channels = Channels(AxisInference(program))
    return channels, score_channels(channels, score, context or PassContext())  # type: ignore[arg-type]


@pytest.mark.parametrize("score", ["l1", "l2"])
def test_magnitudes_are_summed_over_both_sides(score: str) -> None:
    program = program_of(Two(), torch.randn(2, 3))
    up, bias, down = (program.weights[name] for name in ("up.weight", "up.bias", "down.weight"))
    whole = torch.cat([up, bias[:, None], down.T], 1)
    wanted = whole.abs().sum(1) if score == "l1" else whole.square().sum(1).sqrt()
    channels, found = scores_of(program, score)
    (group,) = channels.groups
    np.testing.assert_allclose(found[group.channels], (wanted / wanted.mean()).numpy(), rtol=1e-12)


def test_distances_are_those_between_whole_channels() -> None:
    program = program_of(Two(), torch.randn(2, 3))
    whole = torch.cat(
        [program.weights["up.weight"], program.weights["up.bias"][:, None], program.weights["down.weight"].T], 1
    )
    wanted = torch.cdist(whole, whole).sum(1)
    channels, found = scores_of(program, "fpgm")
    np.testing.assert_allclose(found[channels.groups[0].channels], (wanted / wanted.mean()).numpy(), rtol=1e-9)


def test_taylor_scores_are_the_squared_movement_of_the_outputs() -> None:
    """Of a network without activations the first order is all but the product of both sides, which doubles the movement."""
    program = program_of(Two(), torch.randn(4, 3))
    batches = [{"x": torch.randn(4, 3).double()} for _ in range(400)]
    channels, found = scores_of(program, "taylor", PassContext(calibration=batches))
    wanted = np.zeros(6)
    for batch in batches:
        hidden = batch["x"] @ program.weights["up.weight"].T + program.weights["up.bias"]
        for channel in range(6):
            wanted[channel] += float(
                (hidden[:, channel, None] * program.weights["down.weight"][:, channel]).square().sum()
            )
    got = found[channels.groups[0].channels]
    np.testing.assert_allclose(got, wanted / wanted.mean(), rtol=0.25)


def test_taylor_without_data_is_refused() -> None:
    program = program_of(Two(), torch.randn(2, 3))
    with pytest.raises(UsageError, match="score=taylor needs data") as refusal:
        PassManager(parse_pipeline("prune{score=taylor}")).run(program)
    assert refusal.value.code == "DS0373"
    with pytest.raises(UsageError, match="lacks the input 'x'"):
        PassManager(parse_pipeline("prune{score=taylor}")).run(program, PassContext(calibration=[{"y": torch.ones(1)}]))


@pytest.mark.parametrize("score", SCORES)
def test_every_score_prunes_exactly(score: str) -> None:
    for program in (
        program_of(CNNS["grouped"](), torch.randn(2, 3, 8, 8)),
        program_of(TOKEN_NETS["gqa_copies"](), torch.randn(2, TOKENS, WIDTH)),
    ):
        (spec,), (node,) = program.signature.inputs, program.inputs
        batch = {spec.name: torch.randn(tuple(node.meta["val"].shape)).double()}
        result, records = PassManager(parse_pipeline(f"prune{{ratio=0.4,score={score}}}")).run(
            program, PassContext(calibration=[batch])
        )
        assert records[0].changes
        assert masked_difference(program, result) <= 1e-10


def test_scores_divide_by_the_mean_of_the_group() -> None:
    program = program_of(CNNS["dense"](), torch.randn(2, 3, 8, 8))
    channels, found = scores_of(program, "l1")
    for group in channels.groups:
        assert abs(found[group.channels].mean() - 1) < 1e-12
