"""remove-blocks takes out the blocks that do least, and nothing that the shapes need."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dsopt.errors import UsageError
from dsopt.frontend.export import export_module
from dsopt.ir import Program
from dsopt.ir.blocks import find_blocks
from dsopt.passes.base import PassContext, PassManager, parse_pipeline
from models.gpt import gpt
from models.resnet import BasicBlock, ResNet


class Block(nn.Module):
    def __init__(self, strength: float) -> None:
        super().__init__()
        self.up, self.down, self.strength = nn.Linear(6, 12), nn.Linear(12, 6), strength

    def forward(self, x: Tensor) -> Tensor:
        return x + self.strength * self.down(torch.relu(self.up(x)))


class Net(nn.Module):
    """Blocks of which the second and the fourth do little."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 6)
        self.blocks = nn.ModuleList(Block(strength) for strength in (1.0, 0.01, 0.7, 0.1))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def run(program: Program, options: str, x: Tensor | None = None) -> tuple[Program, tuple[str, ...]]:
    batch = {program.signature.inputs[0].name: torch.randn(16, 3) if x is None else x}
    result, records = PassManager(parse_pipeline(f"remove-blocks{{{options}}}")).run(
        program, PassContext(calibration=[batch])
    )
    return result, records[0].changes


def test_the_blocks_that_do_least_go_and_their_inputs_pass() -> None:
    model = Net().eval()
    program = export_module(model, (torch.randn(2, 3),), {}, {"x": {0: "batch"}})
    result, changes = run(program, "count=2")
    assert [line.split()[0] for line in changes] == ["blocks.1", "blocks.3"]
    assert not any(name.startswith(("blocks.1.", "blocks.3.")) for name in result.weights)
    x = torch.randn(5, 3)
    hidden = model.blocks[2](model.blocks[0](model.stem(x)))
    torch.testing.assert_close(result.run(x)[0], model.head(hidden).detach())
    assert any(name.startswith("blocks.1.") for name in program.weights)


def test_blocks_can_be_kept() -> None:
    program = export_module(Net().eval(), (torch.randn(16, 3),))
    _, changes = run(program, "count=1,keep=blocks.1|blocks.2")
    assert changes[0].startswith("blocks.3 removed: the outputs move by")


def test_a_block_that_changes_the_shape_is_none() -> None:
    model = ResNet(BasicBlock, (2, 2, 1, 2), classes=4).eval()
    program = export_module(model, (torch.randn(1, 3, 32, 32),))
    assert [block.name for block in find_blocks(program)] == ["layer1.0", "layer1.1", "layer2.1", "layer4.1"]
    result, changes = run(program, "count=3", torch.randn(1, 3, 32, 32))
    assert len(changes) == 3
    assert len(find_blocks(result)) == 1


def test_both_sums_of_a_transformer_layer_go_together() -> None:
    spec = gpt(layers=3)
    program = export_module(spec.model, tuple(spec.args), {}, spec.dynamic)
    assert [(block.name, len(block.shortcuts)) for block in find_blocks(program)][-3:] == [
        ("layers.0", 2), ("layers.1", 2), ("layers.2", 2),
    ]  # fmt: skip
    result, changes = run(program, "count=1", spec.args[0])
    (gone,) = [line.split()[0] for line in changes]
    assert not any(name.startswith(gone + ".") for name in result.weights)
    result.verify()


def test_more_blocks_than_there_are_and_missing_data_are_refused() -> None:
    program = export_module(Net().eval(), (torch.randn(16, 3),))
    with pytest.raises(UsageError, match="count=5 blocks are to go, and the program has 4") as refusal:
        run(program, "count=5")
    assert refusal.value.code == "DS0375"
    with pytest.raises(UsageError, match="remove-blocks needs data"):
        PassManager(parse_pipeline("remove-blocks")).run(program)
    with pytest.raises(UsageError, match="lacks the input 'x'"):
        PassManager(parse_pipeline("remove-blocks")).run(program, PassContext(calibration=[{"y": torch.ones(1)}]))
    with pytest.raises(UsageError, match="DS0307"):
        parse_pipeline("remove-blocks{count=0}")
