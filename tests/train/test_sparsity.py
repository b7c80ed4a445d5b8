"""ChannelSparsity is the group lasso over coupled channels, and training with it lets channels be pruned for nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dsopt.errors import UsageError
from dsopt.frontend.export import export_module
from dsopt.passes.base import PassManager, parse_pipeline
from dsopt.train import ChannelSparsity
from tests.passes.prune.nets import conv_bn


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        return self.head(x + torch.relu(self.body(x)))


def test_the_penalty_is_the_length_of_all_that_goes_with_each_channel() -> None:
    model = Residual().double()
    program = export_module(model, (torch.randn(3, 4).double(),))
    module = program.module()
    whole = torch.cat([model.up.weight, model.up.bias[:, None], model.body.bias[:, None], model.head.weight.T], 1)
    body = model.body.weight  # a channel has a row and a column of it
    squares = whole.square().sum(1) + body.square().sum(1) + body.square().sum(0)
    wanted = (squares * (whole.shape[1] + 16)).sqrt().sum()
    penalty = ChannelSparsity(program)(module)
    torch.testing.assert_close(penalty, wanted)
    (gradient,) = torch.autograd.grad(penalty, [module.weights_by_name()["up.weight"]])
    (expected,) = torch.autograd.grad(wanted, [model.up.weight])
    torch.testing.assert_close(gradient, expected)


def test_scales_are_those_of_batch_normalisation() -> None:
    program = export_module(nn.Sequential(conv_bn(3, 6), nn.Conv2d(6, 2, 1)).eval(), (torch.randn(1, 3, 4, 4),))
    module = program.module()
    assert float(ChannelSparsity(program, "scales")(module).detach()) == 6
    with pytest.raises(UsageError, match="no channels that kind='scales' can push"):
        ChannelSparsity(export_module(Residual().eval(), (torch.randn(3, 4),)), "scales")
    with pytest.raises(UsageError, match="kind is 'all'"):
        ChannelSparsity(program, "all")  # type: ignore[arg-type]


def test_training_with_it_makes_room() -> None:
    """A target that half of the hidden channels can compute: pruning half of them costs less after training with the penalty."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 4, generator=generator)
    y = torch.relu(x @ torch.randn(4, 3, generator=generator)) @ torch.randn(3, 2, generator=generator)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    program = export_module(model, (x,))
    losses = {}
    for strength in (0.0, 1e-3):
        module, penalty = program.module().train(), ChannelSparsity(program)
        optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
        for _ in range(400):
            optimizer.zero_grad()
            (nn.functional.mse_loss(module(x), y) + strength * penalty(module)).backward()
            optimizer.step()
        trained = program.with_weights(module.eval())
        result, _ = PassManager(parse_pipeline("prune{ratio=0.5,score=l2}")).run(trained)
        losses[strength] = float(nn.functional.mse_loss(result.run(x)[0], y))
    assert losses[1e-3] < losses[0.0] / 3
