"""student: the layers that stay are the teacher's, and what is left computes what a net of those layers alone does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dsopt.errors import UsageError
from dsopt.frontend.export import export_module
from dsopt.ir.blocks import find_layers
from dsopt.passes.base import PassManager, parse_pipeline
from dsopt.train import student
from tests.train.encoders import captured, seeded_encoder


@pytest.mark.parametrize("is_post_norm", [False, True])
@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"keep_every": 2}, [0, 2, 4]),
        ({"keep_every": 3}, [0, 3]),
        ({"blocks": ["layers.1", "layers.4"]}, [1, 4]),
        ({"blocks": ["layers.[35]"]}, [3, 5]),
    ],
)
def test_the_student_is_the_net_of_the_layers_that_stay(options: Any, kept: list[int], is_post_norm: bool) -> None:
    model = seeded_encoder(0, layers=6, is_post_norm=is_post_norm)
    program = captured(model)
    text = program.text()
    result = student(program, **options)
    x = torch.randn(3, 5, 3, dtype=torch.float64)
    model.layers = nn.ModuleList(model.layers[number] for number in kept)
    torch.testing.assert_close(result.run(x)[0], model(x).detach(), rtol=1e-12, atol=1e-12)
    gone = [f"layers.{number}." for number in range(6) if number not in kept]
    assert not any(name.startswith(tuple(gone)) for name in result.weights)
    assert [layer.name for layer in find_layers(result)] == [f"layers.{number}" for number in kept]
    assert program.text() == text


class Half(nn.Module):
    """One sum of a layer, in a module of its own."""

    def __init__(self, is_first: bool) -> None:
        super().__init__()
        self.norm, self.linear, self.is_first = nn.LayerNorm(6), nn.Linear(6, 6), is_first

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return self.norm(x + (y.softmax(-1) if self.is_first else torch.relu(y)))


class Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 6)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"attention": Half(True), "output": Half(False)}) for _ in range(4)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer["output"](layer["attention"](x))  # type: ignore[index]
        return x.sum(-1)


def test_sums_in_several_modules_that_alternate_are_one_layer() -> None:
    model = Halves().double().eval()
    program = export_module(model, (torch.randn(2, 3, dtype=torch.float64),))
    assert [layer.name for layer in find_layers(program)] == [f"layers.{number}" for number in range(4)]
    result = student(program, keep_every=2)
    x = torch.randn(2, 3, dtype=torch.float64)
    model.layers = nn.ModuleList([model.layers[0], model.layers[2]])
    torch.testing.assert_close(result.run(x)[0], model(x).detach())


class Loop(nn.Module):
    """Layers whose sums one module computes in a loop, with a mask that all use, and a norm after the last."""

    def __init__(self, is_post_norm: bool) -> None:
        super().__init__()
        self.is_post_norm = is_post_norm
        self.parts = nn.ModuleList(nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6), nn.LayerNorm(6)]) for _ in range(4))
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        seen = (x.sum(-1, keepdim=True) > 0).to(x.dtype)
        for first, second, norm in self.parts:  # type: ignore[misc]
            x = torch.tanh(first(x)) * seen + x
            x = torch.relu(second(x)) + x
            x = norm(x) if self.is_post_norm else x
        return self.norm(x)


@pytest.mark.parametrize("is_post_norm", [False, True])
def test_layers_in_a_loop_of_one_module_are_taken_apart(is_post_norm: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 6), Loop(is_post_norm), nn.Linear(6, 2)).double().eval()
    x = torch.randn(5, 3, dtype=torch.float64)
    program = export_module(model, (x,))
    assert len(find_layers(program)) == 4
    result = student(program, keep_every=2)
    loop: Any = model[1]
    loop.parts = nn.ModuleList([loop.parts[0], loop.parts[2]])
    torch.testing.assert_close(result.run(x)[0], model(x).detach())
    assert len(find_layers(student(program, blocks=["1"]))) == 4  # the module means all layers in it


def test_a_layer_that_takes_the_input_itself_is_one() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).double().eval()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    program = export_module(model, (x,))
    result = student(program, blocks=["layers.1"])
    model.layers = nn.ModuleList([model.layers[1]])
    torch.testing.assert_close(result.run(x)[0], model(x).detach())


def test_the_pass_removes_all_but_every_kth_without_data() -> None:
    program = captured(seeded_encoder(0, layers=4))
    result, records = PassManager(parse_pipeline("remove-blocks{every=2,keep=layers.3}")).run(program)
    assert records[0].changes == ("layers.1 removed",)
    assert [layer.name for layer in find_layers(result)] == ["layers.0", "layers.2", "layers.3"]
    with pytest.raises(UsageError, match="DS0307"):
        parse_pipeline("remove-blocks{every=1}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "keep_every or by blocks"),
        ({"keep_every": 2, "blocks": []}, "keep_every or by blocks"),
        ({"keep_every": 1}, "keep_every is 1"),
        ({"blocks": ["layers.7"]}, "no layer 'layers.7'"),
    ],
)
def test_a_student_that_cannot_be_made_is_refused(options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        student(captured(seeded_encoder(0, layers=2)), **options)
    assert refused.value.code == "DS0379"


def test_a_program_without_layers_has_no_student() -> None:
    program = export_module(nn.Linear(3, 3).eval(), (torch.randn(2, 3),))
    with pytest.raises(UsageError, match="the program has 0") as refused:
        student(program, keep_every=2)
    assert refused.value.code == "DS0375"
