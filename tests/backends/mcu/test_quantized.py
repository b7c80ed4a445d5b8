"""Quantised nets from the passes to the emulated core: every bit of each quantised operator as the NumPy oracle gives it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dsopt
from dsopt import api
from dsopt.ir import Program, example_inputs
from dsopt.runtime.simulated import open_executor

INTEGER_OPERATORS = {
    name.removeprefix("dsopt::")
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("dsopt::q_") or name in ("dsopt::quantize", "dsopt::dequantize")
}


class Image(nn.Module):
    """Convolutions of all kinds, a gate, a residual, a concatenation, and all poolings."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Hardswish())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU6())
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.gate = nn.Linear(8, 8)
        self.residual = nn.Conv2d(8, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        mixed = self.grouped(self.depthwise(x))
        x = x + mixed - F.relu(mixed)
        x = F.relu(x + self.residual(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]
        small = F.max_pool2d(x, 2)
        joined = torch.cat([self.up(F.avg_pool2d(small, 3, 2, 1)), F.leaky_relu(small[:, :, :4, :4])], 1)
        pooled = joined.mean((2, 3))
        return torch.cat([self.head(pooled).softmax(-1), pooled], -1)


class Text(nn.Module):
    """An embedding, attention by its products, layer norms, and a feed-forward layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.norm = nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 48)
        self.feed = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16), nn.Tanh())
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        q, k, v = self.qkv(self.norm(x)).reshape(1, 6, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, 6, 16)
        return self.head((x + self.feed(x)).mean(1))


class Sequence(nn.Module):
    """A convolution in time, an LSTM and a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 6, 3, padding=1)
        self.lstm = nn.LSTM(6, 5, batch_first=True)
        self.gru = nn.GRU(5, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x)).transpose(1, 2)
        return self.head(self.gru(self.lstm(x)[0])[0][:, -1])


NETS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "image": (Image, torch.zeros(1, 3, 8, 8)),
    "text": (Text, torch.zeros(1, 6, dtype=torch.long)),
    "sequence": (Sequence, torch.zeros(1, 4, 7)),
}
OPTIONS = {
    "image": ["", "weights=4", "weights=4,per=group,group=4", "activations=16", "power_of_two=true,observer=mse"],
    "text": ["", "weights=4,per=group,group=8", "activations=16"],
    "sequence": ["", "weights=4"],
}
CASES = [(name, options) for name, variants in OPTIONS.items() for options in variants]


def captured(name: str) -> Program:
    make, x = NETS[name]
    torch.manual_seed(3)
    model = make()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)  # type: ignore[union-attr]
                module.running_var.uniform_(0.3, 2)  # type: ignore[union-attr]
    return dsopt.capture(model.eval(), (x,))


def samples(program: Program, count: int, seed: int) -> list[dict[str, Any]]:
    (spec,) = program.signature.inputs
    runs = [example_inputs(program, seed=seed + n)[0].numpy() for n in range(count)]
    return [{spec.name: np.random.default_rng(n).integers(0, 20, x.shape) if x.dtype == np.int64 else x}
            for n, x in enumerate(runs)]  # fmt: skip


def build(name: str, options: str) -> tuple[Program, api.Build]:
    program = captured(name)
    made = api.build(program, "mcu:cortex-m4", f"...,quantize{{{options}}}", samples(program, 12, 0))
    return program, made


@pytest.mark.mcu
@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_emulated_core_gives_the_bits_of_the_oracle(name: str, options: str) -> None:
    program, made = build(name, options)
    executor = open_executor(made.artifact)
    for feed in samples(program, 2, 100):
        got = executor.run(feed)
        wanted = made.program.run(*(torch.from_numpy(value) for value in feed.values()))
        for spec, want in zip(program.signature.outputs, wanted, strict=True):
            np.testing.assert_array_equal(got[spec.name], want.numpy())
    floats = {str(node.target) for node in made.program.graph.nodes if "aten" in str(node.target)}
    assert not floats & {"aten.convolution.default", "aten.linear.default", "aten.matmul.default", "aten.softmax.int"}


@pytest.mark.mcu
@pytest.mark.parametrize("core", ["cortex-m0plus", "rv32imc", "rv32imafc"])
def test_cores_without_the_dsp_extension_give_the_bits_of_the_oracle(core: str) -> None:
    program = captured("image")
    made = api.build(program, f"mcu:{core}", "...,quantize", samples(program, 12, 0))
    (feed,) = samples(program, 1, 100)
    got = open_executor(made.artifact).run(feed)
    wanted = made.program.run(*(torch.from_numpy(value) for value in feed.values()))
    for spec, want in zip(program.signature.outputs, wanted, strict=True):
        np.testing.assert_array_equal(got[spec.name], want.numpy())
    rows = made.artifact.manifest["layers"]
    assert all(row["instructions"] > 0 for row in rows)
    assert sum(row["instructions"] for row in rows) <= made.artifact.manifest["memory"]["instructions"]


@pytest.mark.mcu
def test_a_cortex_m85_has_the_code_that_runs_on_a_cortex_m55() -> None:
    program = captured("image")
    built = {
        core: api.build(program, f"mcu:{core}", "...,quantize", samples(program, 12, 0)).artifact
        for core in ("cortex-m55", "cortex-m85")
    }
    for name in ("model.c", "weights.c", "kernels.h"):
        first, second = (built[core].files[name].decode().replace(core, "CORE") for core in built)
        assert first == second
    assert "vmladav" in built["cortex-m85"].files["kernels.h"].decode()
    assert "nothing emulates a cortex-m85" in built["cortex-m85"].manifest["memory"]["why_not_run"]
    assert "nothing emulates a cortex-m85" in str(built["cortex-m85"].manifest["check"])


def test_the_nets_have_every_integer_operator() -> None:
    found: set[str] = set()
    for name in NETS:
        _, made = build(name, "")
        calls = [str(node.target) for node in made.program.graph.nodes if node.op == "call_function"]
        found |= {call.split(".")[1] for call in calls if call.startswith("dsopt.")}
    assert found == INTEGER_OPERATORS


@pytest.mark.mcu
def test_inputs_with_channels_last_give_the_same_image_and_the_same_numbers() -> None:
    """What a model was captured with, calibrated on or is fed with in memory order is no part of its meaning."""
    make, x = NETS["image"]
    artifacts = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(3)
        model = make().eval().to(memory_format=layout)
        program = dsopt.capture(model, (x.clone(memory_format=layout),))
        feeds = samples(program, 12, 0)
        given = [{name: np.asfortranarray(value) for name, value in feed.items()} for feed in feeds]
        artifacts.append(api.build(program, "mcu:cortex-m4", "...,quantize", given, io="int8").artifact)
    plain, last = artifacts
    assert plain.files["model.c"] == last.files["model.c"]
    assert plain.files["weights.c"] == last.files["weights.c"]
    assert plain.files["image.elf"] == last.files["image.elf"]
    feed = samples(captured("image"), 1, 50)[0]
    strided = {name: value.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2) for name, value in feed.items()}
    for name, value in open_executor(plain).run(feed).items():
        np.testing.assert_array_equal(open_executor(last).run(strided)[name], value)
