"""A loop of the user's own: the module of a prepared program trains like any module, and its weights come back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsopt.errors import UsageError
from dsopt.frontend.export import export_module
from dsopt.ir import Program
from dsopt.passes.base import PassContext, PassManager, parse_pipeline
from dsopt.train import qat
from tests.train.nets import Net, net_program, random_loader

FAKE = torch.ops.dsopt.fake_quantize.default
AFTER = "fold-batch-norm,quantize-convert,remove-dead-code"


def _prepared(options: str = "", program: Program | None = None) -> Program:
    found = program or net_program()
    context = PassContext(calibration=[{"x": x} for x, _ in random_loader(shuffle=False)])
    return PassManager(parse_pipeline(f"canonicalize,quantize-prepare{{{options}}}")).run(found, context)[0]


def _scales(program: Program) -> set[str]:
    return {str(program.weight_name(node.args[1])) for node in program.graph.nodes if node.target is FAKE}


@pytest.mark.parametrize(
    "options", ["weights=4", "per=group,group=4", "per=tensor", "power_of_two=false,activations=16"]
)
def test_a_plain_loop_trains_scales_too_and_the_program_takes_its_weights(options: str) -> None:
    prepared = _prepared(options)
    before = {name: value.clone() for name, value in prepared.weights.items()}
    module = prepared.module().train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    losses = []
    for _ in range(8):
        for x, y in random_loader(shuffle=False):
            optimizer.zero_grad()
            loss = F.cross_entropy(module(x), y)
            loss.backward()
            grads = {name: value.grad for name, value in module.weights_by_name().items() if value.requires_grad}
            assert all(grads[name] is not None and bool(grads[name].isfinite().all()) for name in _scales(prepared))
            optimizer.step()
            losses.append(float(loss.detach()))
    assert np.mean(losses[-6:]) < np.mean(losses[:6])
    trained = prepared.with_weights(module)
    assert all(torch.equal(value, before[name]) for name, value in prepared.weights.items())
    moved = [name for name in _scales(prepared) if not torch.equal(trained.weights[name], before[name])]
    assert len(moved) == len(_scales(prepared))
    x = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(trained.module()(x), module.eval()(x))


def test_steps_stay_positive_however_far_a_scale_is_pushed() -> None:
    prepared = _prepared()
    module = prepared.module()
    with torch.no_grad():
        for name in _scales(prepared):
            module.weights_by_name()[name].neg_()
    x = torch.randn(4, 1, 8, 8)
    # a step is the magnitude of what is learned, so the sign changes nothing
    assert torch.equal(module(x), prepared.module()(x))
    converted, _ = PassManager(parse_pipeline(AFTER)).run(prepared.with_weights(module))
    steps = [node.args[1] for node in converted.graph.nodes if node.target is torch.ops.dsopt.dequantize.default]
    stored = [value for name, value in converted.weights.items() if name.endswith(".scale")]
    assert steps and all(step > 0 for step in steps)
    assert stored and all(bool((value > 0).all()) for value in stored)


def test_the_gradient_of_a_scale_keeps_its_direction_where_the_scale_is_negative() -> None:
    x = torch.linspace(-3, 3, 50)
    slopes = []
    for sign in (1.0, -1.0):
        scale = torch.tensor(sign * 0.02, requires_grad=True)
        torch.ops.dsopt.fake_quantize(x, scale, torch.tensor(0.0), 0, 0, -128, 127, False).square().sum().backward()
        slopes.append(float(scale.grad))  # type: ignore[arg-type]
    assert slopes[0] == -slopes[1] != 0


def test_the_gradient_of_a_scale_is_that_of_lsq() -> None:
    """Esser et al. 2020, equation 3, by hand: -x/s + round(x/s) inside, the end of the range outside, over sqrt(N * Qp)."""
    torch.manual_seed(0)
    x, s = torch.randn(6, 10), 0.3
    scale = torch.tensor(s, requires_grad=True)
    torch.ops.dsopt.fake_quantize(x, scale, torch.tensor(0.0), 0, 0, -7, 7, False).sum().backward()
    ratio = x.double().numpy() / np.float64(np.float32(s))
    slope = np.where(ratio < -7.5, -7, np.where(ratio > 7.5, 7, np.rint(ratio) - ratio))
    # N is the elements of one sample: how many samples a batch has must not change the step that is taken
    assert float(scale.grad) == pytest.approx(slope.sum() / np.sqrt(10 * 7), rel=1e-4)  # type: ignore[arg-type]


# ---- batch normalisation and dropout ----


def test_batch_norm_and_dropout_keep_their_numbers_through_swaps() -> None:
    module = _prepared("keep=conv|norm|head").module()
    net = Net()
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if name in module.weights_by_name():
                value.copy_(module.weights_by_name()[name])
    for _ in range(3):  # eager torch makes the same swaps
        module.train().eval().train()
        net.train().eval().train()
    x = torch.randn(64, 1, 8, 8)
    # all but the input and what is between is float, so that statistics can be compared with eager torch's
    rounded = _value_of(module, x, torch.ops.aten.convolution.default, torch.ops.aten.conv2d.default)
    net.norm(rounded)
    weights = module.weights_by_name()
    torch.testing.assert_close(weights["norm.running_mean"], net.norm.running_mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(weights["norm.running_var"], net.norm.running_var, rtol=1e-6, atol=1e-7)
    dropped = _value_of(module, x, torch.ops.aten.dropout.default)
    share = float((dropped == 0).float().mean())
    kept = _value_of(module.eval(), x, torch.ops.aten.dropout.default)
    zeros = float((kept == 0).float().mean())
    assert share == pytest.approx(zeros + (1 - zeros) * 0.25, abs=0.02)  # 6,144 draws: 4 standard deviations


def _value_of(module: Any, x: Tensor, *targets: Any) -> Tensor:
    found: list[Tensor] = []
    module.watch = lambda node, value: found.append(value.detach()) if node.target in targets else None
    module(x)
    module.watch = None
    return found[0]


def test_frozen_batch_norm_keeps_statistics_while_dropout_goes_on() -> None:
    module = _prepared().module().train()
    module.freeze_batch_norm()
    before = {name: value.clone() for name, value in module.weights_by_name().items() if "running" in name}
    x = torch.randn(8, 1, 8, 8)
    one, two = module(x), module(x)
    assert not torch.equal(one, two)
    module.eval().train()
    module(x)
    assert all(torch.equal(module.weights_by_name()[name], value) for name, value in before.items())
    assert torch.equal(module.eval()(x), module(x))


def test_statistics_freeze_on_schedule() -> None:
    program, loader = net_program(), random_loader()

    def statistics(share: float, epochs: int) -> Tensor:
        result = qat(
            program, loader, F.cross_entropy, epochs=epochs, freeze_batch_norm=share, observe=0.0, reestimate_batches=0,
            optimizer=lambda groups: torch.optim.SGD(groups, lr=0.0),
        )  # fmt: skip
        return result.prepared.weights["norm.running_mean"]

    first = program.weights["norm.running_mean"]
    assert torch.equal(statistics(0.0, 2), first)
    assert torch.equal(statistics(0.5, 2), statistics(1.0, 1))
    assert not torch.equal(statistics(1.0, 2), statistics(1.0, 1))


def test_reestimation_gives_the_plain_average_of_the_batches() -> None:
    module = _prepared().module().train()
    batches = [x * scale for scale, (x, _) in zip((1, 2, 3), random_loader(shuffle=False), strict=False)]
    values = []
    for batch in batches:
        values.append(
            _value_of(module.eval(), batch, torch.ops.aten.convolution.default, torch.ops.aten.conv2d.default)
        )
    module.train()
    count = module.reestimate_batch_norm([lambda each, batch=batch: each(batch) for batch in batches])  # type: ignore[misc]
    assert count == 3 and module.training
    wanted = [value.double().numpy() for value in values]
    weights = module.weights_by_name()
    means = np.mean([value.mean((0, 2, 3)) for value in wanted], 0)
    variances = np.mean([value.var((0, 2, 3), ddof=1) for value in wanted], 0)
    np.testing.assert_allclose(weights["norm.running_mean"], means, rtol=1e-4, atol=1e-6)  # float32 sums
    np.testing.assert_allclose(weights["norm.running_var"], variances, rtol=1e-4)


def test_folding_after_training_gives_the_numbers_of_the_trained_module() -> None:
    result = qat(net_program(), random_loader(), F.cross_entropy, epochs=2, learning_rate=1e-2)
    assert not any(node.target is torch.ops.aten.batch_norm.default for node in result.program.graph.nodes)
    x = torch.randn(32, 1, 8, 8)
    with torch.no_grad():
        got, wanted = result.program.module()(x), result.prepared.module()(x)
    # folded weights are rounded anew with steps that folding scaled: the logits' own step is the measure
    steps = [node.args[1] for node in result.program.graph.nodes if node.target is torch.ops.dsopt.dequantize.default]
    assert float((got - wanted).abs().max()) <= 2 * float(steps[-1])
    assert float((got.argmax(1) == wanted.argmax(1)).float().mean()) >= 0.96


def test_weights_of_another_program_are_refused() -> None:
    prepared = _prepared()
    with pytest.raises(UsageError, match="another program"):
        prepared.with_weights(_prepared("keep=head").module())
    with pytest.raises(UsageError, match=r"takes what Program.module\(\) made"):
        prepared.with_weights(nn.Linear(2, 2))


def test_a_recurrent_net_trains() -> None:
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(3, 6, batch_first=True), nn.Linear(6, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(x)[0][:, -1])

    torch.manual_seed(0)
    program = export_module(Sequence().eval(), (torch.randn(4, 5, 3),), {}, {"x": {0: "batch"}})
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(4, 16, 5, 3, generator=generator)
    loader = [(each, each.sum((1, 2))[:, None] / 4) for each in x]
    result = qat(program, loader, F.mse_loss, epochs=4, learning_rate=2e-2)
    assert result.history[-1].loss < result.history[0].loss
    untrained = qat(program, loader, F.mse_loss, epochs=0).prepared
    for name in ("lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.weight_hh_l0_scale"):
        assert not torch.equal(result.prepared.weights[name], untrained.weights[name])
