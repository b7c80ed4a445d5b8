"""Programs with states train: the gradient of a step is that of the user's module, and states go from call to call."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsopt.frontend.export import export_module
from dsopt.train import qat


class Echo(nn.Module):
    """Adds what it remembers of the batch before, multiplied by a weight, so that the gradient needs the old state."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.before = nn.Linear(3, 4), nn.Linear(4, 4)
        self.register_buffer("memory", torch.full((1, 4), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.now(x) + self.before(self.memory))
        self.memory.copy_(y.mean(0, keepdim=True))
        return y


class PureEcho(Echo):
    """The same function of x and memory, written without a change in place: what eager PyTorch can differentiate."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.now(x) + self.before(self.memory))
        self.memory = y.mean(0, keepdim=True).detach()
        return y


def test_gradients_are_those_of_the_module_call_after_call() -> None:
    oracle = PureEcho()
    net = Echo()
    net.load_state_dict(oracle.state_dict())
    module = export_module(net, (torch.randn(2, 3),)).module()
    module.train()
    for number in range(3):
        x = torch.randn(2, 3, generator=torch.Generator().manual_seed(number))
        (module(x) ** 2).sum().backward()
        (oracle(x) ** 2).sum().backward()
        for name, value in module.weights_by_name().items():
            expected = oracle.get_parameter(name).grad
            assert expected is not None
            torch.testing.assert_close(value.grad, expected)
    states = dict(module.named_buffers())
    torch.testing.assert_close(states["memory"], oracle.memory)


def test_a_net_with_a_state_is_trained_and_quantised() -> None:
    program = export_module(Echo(), (torch.randn(2, 3),))
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(2, 3, generator=generator), torch.zeros(2, 4)) for _ in range(8)]
    result = qat(program, batches, nn.functional.mse_loss, epochs=6, learning_rate=1e-2)
    assert result.history[-1].loss < 0.5 * result.history[0].loss
    assert torch.equal(program.weights["memory"], torch.full((1, 4), 0.5))
