"""Grids follow what training does to activations: moving averages, as brute force gives them, until they are frozen."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dsopt.frontend.export import export_module
from dsopt.ir import Program
from dsopt.passes.base import PassContext, PassManager, parse_pipeline
from dsopt.train import qat
from dsopt.train.observers import Observers
from dsopt.train.processes import Processes
from tests.train.nets import net_program, random_loader


class Joined(nn.Module):
    """Two results that are only joined, and so share one grid."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.two(x)], 1)


def _prepared(module: nn.Module, x: Tensor, options: str = "") -> Program:
    program = export_module(module.eval(), (x,))
    context = PassContext(calibration=[{program.signature.inputs[0].name: x}])
    return PassManager(parse_pipeline(f"quantize-prepare{{{options}}}")).run(program, context)[0]


def _grids(program: Program, module: Any) -> dict[str, tuple[float, float]]:
    tensors = module.weights_by_name()
    return {
        name.removesuffix("_scale"): (
            float(tensors[name].detach()),
            float(tensors[f"{name.removesuffix('_scale')}_zero_point"]),
        )
        for name in tensors
        if name.endswith("_scale") and tensors[name].dim() == 0
    }


@pytest.mark.parametrize("options", ["", "activations=16", "power_of_two=true"])
def test_an_input_s_grid_is_the_moving_average_of_its_ends(options: str) -> None:
    rng = np.random.default_rng(0)
    batches = [rng.normal(loc, 1 + loc, (8, 4)) for loc in (0.5, 1.0, 3.0, 0.1)]
    program = _prepared(nn.Linear(4, 3), torch.tensor(batches[0], dtype=torch.float32), options)
    module = program.module().train()
    observers = Observers(program, module, Processes())
    module.watch = observers.watch
    scale, zero = _grids(program, module)[program.inputs[0].name]
    least, most = (-32768, 32767) if "16" in options else (-128, 127)
    low, high = (least - zero) * scale, (most - zero) * scale
    for batch in batches:
        module(torch.tensor(batch, dtype=torch.float32))
        observers.apply()
        low, high = low + 0.1 * (batch.min() - low), high + 0.1 * (batch.max() - high)
    step = max(-low, high) / most if "16" in options else (max(high, 0) - min(low, 0)) / 255
    if "power" in options:
        step = 2.0 ** math.ceil(math.log2(step))
    wanted = 0 if "16" in options else round(-128 - min(low, 0) / step)
    got = _grids(program, module)[program.inputs[0].name]
    assert got[0] == pytest.approx(step, rel=1e-5)  # float32 averages
    assert got[1] == wanted


def test_values_that_share_a_grid_widen_it_together() -> None:
    program = _prepared(Joined(), torch.randn(16, 4))
    module = program.module().train()
    with torch.no_grad():
        module.weights_by_name()["one.bias"].fill_(50.0)
    observers = Observers(program, module, Processes())
    module.watch = observers.watch
    for _ in range(60):
        out = module(torch.randn(16, 4)).detach()
        observers.apply()
    # only one of the two moved, and neither order of the parts may narrow the grid again
    assert float(out.max()) > 45
    assert float(out.min()) < -0.5


def test_only_training_is_watched_and_only_until_grids_are_frozen() -> None:
    program = _prepared(nn.Linear(4, 3), torch.randn(8, 4))
    module = program.module().eval()
    observers = Observers(program, module, Processes())
    module.watch = observers.watch
    before = _grids(program, module)
    module(100 * torch.randn(8, 4))
    observers.apply()
    assert _grids(program, module) == before


@pytest.mark.parametrize(("observe", "moves"), [(0.0, False), (1.0, True)])
def test_qat_observes_for_the_share_that_it_is_told(observe: float, moves: bool) -> None:
    def frozen(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=0.0)

    loader = [(10 * x, y) for x, y in random_loader(shuffle=False)]
    calm = [(x / 10, y) for x, y in loader]
    program = net_program()
    start = qat(program, calm, nn.functional.cross_entropy, epochs=0, optimizer=frozen).prepared
    trained = qat(start, loader, nn.functional.cross_entropy, epochs=1, optimizer=frozen, observe=observe).prepared
    assert (float(trained.weights["x_scale"]) > 2 * float(start.weights["x_scale"])) is moves
    assert torch.equal(trained.weights["conv.weight"], start.weights["conv.weight"])


def test_a_grid_that_an_operator_fixes_is_left_alone() -> None:
    class Soft(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.softmax(x, -1)

    program = _prepared(Soft(), torch.randn(4, 6))
    module = program.module().train()
    observers = Observers(program, module, Processes())
    module.watch = observers.watch
    module(9 * torch.randn(4, 6))
    observers.apply()
    fixed = [grid for grid in _grids(program, module).values() if grid == (1 / 256, -128.0)]
    assert len(fixed) == 1


def test_averages_are_gone_on_with() -> None:
    program = _prepared(nn.Linear(4, 3), torch.randn(8, 4))
    batches = [torch.randn(8, 4) * scale for scale in (1, 4, 2, 6)]

    def run(module: Any, observers: Observers, values: list[Tensor]) -> None:
        module.watch = observers.watch
        for value in values:
            module(value)
            observers.apply()

    whole = program.module().train()
    run(whole, Observers(program, whole, Processes()), batches)
    first = program.module().train()
    observers = Observers(program, first, Processes())
    run(first, observers, batches[:2])
    second = program.module().train()
    second.load_state_dict(first.state_dict())
    later = Observers(program, second, Processes())
    later.load_state_dict(observers.state_dict())
    run(second, later, batches[2:])
    assert _grids(program, second) == _grids(program, whole)


def test_a_step_with_infinities_is_left_out_of_the_averages() -> None:
    program = _prepared(nn.Linear(4, 3), torch.randn(8, 4))
    module = program.module().train()
    observers = Observers(program, module, Processes())
    before = _grids(program, module)[program.inputs[0].name]
    module.watch = observers.watch
    module(torch.full((8, 4), float("inf")))
    observers.apply()
    assert _grids(program, module)[program.inputs[0].name] == pytest.approx(before, rel=1e-6)
    module(20 * torch.randn(8, 4))
    observers.apply()
    assert _grids(program, module)[program.inputs[0].name][0] > 1.5 * before[0]
