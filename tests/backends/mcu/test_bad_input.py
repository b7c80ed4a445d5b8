"""What cannot be compiled for a chip, or run on one, is a sentence with the name of the layer and the exit code of its kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.ao.quantization.fx._decomposed
from click.testing import CliRunner
from torch import Tensor, nn

import dsopt
from dsopt import api
from dsopt.backends.mcu import generate as generator
from dsopt.backends.mcu import measure, toolchain
from dsopt.cli import cli
from dsopt.errors import BudgetError, CheckError, InputError, PassError, ToolchainError, UnsupportedOpError, UsageError
from dsopt.runtime.simulated import open_executor

_DECOMPOSED = torch.ops.quantized_decomposed


measured = measure.simulate


class Net(nn.Module):
    """One linear layer of k inputs, named body.0."""

    def __init__(self, k: int = 64, weight: float | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(k, 4))
        if weight is not None:
            self.body[0].weight.data.fill_(weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def captured(model: nn.Module, k: int = 64) -> dsopt.Program:
    return dsopt.capture(model.eval(), (torch.zeros(1, k),))


def feeds(*values: float, k: int = 64) -> list[dict[str, Any]]:
    return [{"x": np.full((1, k), value, np.float32)} for value in values]


@pytest.mark.mcu
def test_a_model_that_is_too_large_says_by_how_many_bytes_and_where() -> None:
    """64 floats, their result and nothing else: 272 bytes of values, 1,040 of weights."""
    program = captured(Net(400), 400)
    with pytest.raises(BudgetError) as caught:
        dsopt.compile(program, dsopt.McuTarget(ram_bytes=1024, flash_bytes=1024))
    assert (caught.value.code, caught.value.exit_code) == ("DS0601", 1)
    need = 4 * 400 + 4 * 4
    assert (
        f"needs {need:,} bytes of RAM, and mcu:cortex-m4 here has 1,024: {need - 1024:,} too many" in caught.value.what
    )
    weights = 4 * 400 * 4 + 4 * 4
    assert (
        f"weights need {weights:,} bytes of flash, and mcu:cortex-m4 here has 1,024: {weights - 1024:,} too many"
        in caught.value.what
    )
    assert f"{need:,} in body.0 (body_0_linear)" in caught.value.where
    assert f"{weights:,} in body.0 (body_0_linear)" in caught.value.where


@pytest.mark.mcu
def test_sums_that_could_overflow_take_more_bits_and_say_so(tmp_path: Path) -> None:
    """140,000 products of 127 and 255 are more than 2^31: at the limits of all inputs the sum is exact, in generic loops."""
    k = 140_000
    program = captured(Net(k, weight=0.5), k)
    built = api.build(program, "mcu:cortex-m4", "...,quantize", feeds(-1.0, 1.0, 0.5, k=k))
    (row,) = (row for row in built.artifact.manifest["layers"] if row["op"] == "dsopt.q_linear.default")
    assert (row["layer"], row["kernel"], row["why_generic"]) == ("body.0", "generic loops", "its sums need int64")
    executor = open_executor(built.artifact)
    for feed in feeds(-1.0, 1.0, k=k):
        (got,) = executor.run(feed).values()
        np.testing.assert_array_equal(got, built.program.run(torch.from_numpy(feed["x"]))[0].numpy())
        np.testing.assert_allclose(got, program.run(torch.from_numpy(feed["x"]))[0].numpy(), rtol=0.02)
    program.save(tmp_path / "sums.dsoptp")
    np.savez(tmp_path / "samples.npz", x=np.concatenate([feed["x"] for feed in feeds(-1.0, 1.0, k=k)]))
    arguments = [
        "compile",
        str(tmp_path / "sums.dsoptp"),
        "--target",
        "mcu:cortex-m4",
        "--passes",
        "...,quantize",
        "--strict",
    ]
    done = CliRunner().invoke(cli, [*arguments, "--data", str(tmp_path / "samples.npz"), "-o", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert "DS0923" in done.output
    assert "its sums need int64" in done.output


def test_shapes_that_vary_say_how_to_fix_them() -> None:
    program = dsopt.capture(Net().eval(), (torch.zeros(2, 64),), dynamic={"x": {0: "batch"}})
    with pytest.raises(
        UnsupportedOpError, match=r"DS0404: mcu:cortex-m4 needs fixed sizes, and batch varies"
    ) as caught:
        dsopt.compile(program, "mcu:cortex-m4")
    assert caught.value.exit_code == 3
    assert "--dim batch=1" in caught.value.fix


class Chosen(nn.Module):
    """A shape that depends on values."""

    class Mask(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[x[:, 0] > 0]

    def __init__(self) -> None:
        super().__init__()
        self.mask = self.Mask()

    def forward(self, x: Tensor) -> Tensor:
        return self.mask(x)


def test_shapes_that_depend_on_values_name_the_layer() -> None:
    with pytest.raises(UnsupportedOpError, match=r"DS0401.*cannot run 1 of") as caught:
        dsopt.compile(captured(Chosen()), "mcu:cortex-m4")
    assert "in mask at test_bad_input.py" in caught.value.where
    assert "depends on values, and generated loops need fixed sizes" in caught.value.where


class Rounded(nn.Module):
    """A layer that another tool has quantised, with these scales of its result and of its weight."""

    class Layer(nn.Module):
        def __init__(self, scale: float, weight_scale: float) -> None:
            super().__init__()
            self.scale, self.weight_scale = scale, weight_scale
            self.register_buffer("weight", torch.ones(4, 64, dtype=torch.int8))

        def forward(self, x: Tensor) -> Tensor:
            weight = _DECOMPOSED.dequantize_per_tensor(self.weight, self.weight_scale, 0, -128, 127, torch.int8)
            y = nn.functional.linear(x, weight)
            q = _DECOMPOSED.quantize_per_tensor(y, self.scale, 0, -128, 127, torch.int8)
            return _DECOMPOSED.dequantize_per_tensor(q, self.scale, 0, -128, 127, torch.int8)

    def __init__(self, scale: float = 0.5, weight_scale: float = 0.1) -> None:
        super().__init__()
        self.head = self.Layer(scale, weight_scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


@pytest.mark.parametrize("target", ["mcu:cortex-m4", "cpu"])
@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 0.0, -0.5])
def test_a_scale_that_is_no_number_names_the_layer(scale: float, target: str) -> None:
    with pytest.raises(UsageError) as caught:
        dsopt.compile(captured(Rounded(scale)), target)
    assert (caught.value.code, caught.value.exit_code) == ("DS0317", 2)
    assert "in head at test_bad_input.py" in caught.value.where
    assert f"its scale is {scale:g}" in caught.value.where


def test_a_weight_with_a_scale_that_is_no_number_names_the_layer() -> None:
    with pytest.raises(
        UsageError, match=r"DS0317: a scale is no number above 0\n  where: .* in head .*its scale is nan"
    ):
        dsopt.compile(captured(Rounded(weight_scale=float("nan"))), "mcu:cortex-m4")


@pytest.mark.mcu
def test_a_weight_of_zeros_may_have_a_scale_of_zero() -> None:
    artifact = dsopt.compile(captured(Rounded(weight_scale=0.0)), "mcu:cortex-m4")
    (got,) = open_executor(artifact).run(feeds(1.0)[0]).values()
    assert not got.any()


def test_scales_of_channels_that_are_no_numbers_are_counted() -> None:
    class Channels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.ones(4, 64, dtype=torch.int8))
            self.register_buffer("scales", torch.tensor([1.0, float("nan"), 1.0, float("inf")]))
            self.register_buffer("zeros", torch.zeros(4, dtype=torch.int64))

        def forward(self, x: Tensor) -> Tensor:
            weight = _DECOMPOSED.dequantize_per_channel(self.weight, self.scales, self.zeros, 0, -128, 127, torch.int8)
            return nn.functional.linear(x, weight)

    with pytest.raises(UsageError, match=r"DS0317.*\n  where: .*its scale is nan in 2 of 4 channels"):
        dsopt.compile(captured(Channels()), "mcu:cortex-m4")


def test_weights_and_samples_that_are_no_numbers_name_the_layer() -> None:
    broken = Net()
    broken.body[0].weight.data[0, 0] = float("nan")
    with pytest.raises(PassError, match=r"DS0301.*NaN or infinity\n(.*\n)*.*body\.0\.weight: .* in body\.0") as caught:
        api.build(captured(broken), "mcu:cortex-m4", "...,quantize", feeds(1.0))
    assert caught.value.exit_code == 2
    with pytest.raises(InputError, match=r"DS0351.*\n.*x: 0 of 1"):
        api.build(captured(Net()), "mcu:cortex-m4", "...,quantize", feeds(float("nan")))
    with pytest.raises(UsageError, match=r"DS0313.*\n(.*\n)*.* in body\.0 .*4 elements were NaN"):
        api.build(captured(Net()), "mcu:cortex-m4", "...,quantize", feeds(float("inf")))


@pytest.mark.parametrize("core", ["cortex-m0plus", "rv32imc"])
def test_no_compiler_for_a_core_says_how_to_get_one(core: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "_find_zig", lambda: None)
    monkeypatch.setattr(toolchain, "_find_gcc", lambda program: None)
    with pytest.raises(
        ToolchainError, match=rf"DS1020: no compiler for {core} is installed\n  do: pip install dsopt\[mcu\]"
    ) as caught:
        dsopt.compile(captured(Net()), f"mcu:{core}")
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            "echo 'internal compiler error: segmentation fault' >&2; exit 1",
            r"DS1021: broken 1 could not compile .*\n  why: internal",
        ),
        ("kill -9 $$", r"DS1021: broken 1 could not compile"),
        ("exit 0", r"DS102[14]"),  # it says that all is well, and leaves no file
    ],
)
def test_a_broken_compiler_is_a_sentence(
    script: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o700)
    monkeypatch.setattr(toolchain, "_find_zig", lambda: toolchain.Toolchain("zig", "broken 1", (str(compiler),)))
    with pytest.raises(ToolchainError, match=words) as caught:
        dsopt.compile(captured(Net()), "mcu:cortex-m4")
    assert caught.value.exit_code == 4


@pytest.mark.mcu
def test_code_for_instructions_that_the_core_lacks_is_refused_by_the_assembler(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a kernel of the Cortex-M4 had been chosen for a Cortex-M0."""

    def with_smlad(*arguments: object) -> generator.Sources:
        made = generator.generate(*arguments)  # type: ignore[arg-type]
        wrong = (
            made.files["model.c"]
            + '\nvoid net_wrong(void);\nvoid net_wrong(void) { __asm__ volatile("smlad r0, r1, r2, r3"); }\n'
        )
        return generator.Sources({**made.files, "model.c": wrong}, made.names, made.ports)

    monkeypatch.setattr("dsopt.backends.mcu.emitter.generate", with_smlad)
    with pytest.raises(ToolchainError, match=r"DS1021: .* could not compile model\.c\n(.*\n)*.*smlad") as caught:
        dsopt.compile(captured(Net()), "mcu:cortex-m0")
    assert caught.value.exit_code == 4


@pytest.mark.mcu
def test_code_that_hangs_is_stopped_in_its_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    def hanging(*arguments: object) -> generator.Sources:
        made = generator.generate(*arguments)  # type: ignore[arg-type]
        head, _, rest = made.files["model.c"].partition("body_0_linear(")
        start, _, body = rest.partition("{")
        wrong = f"{head}body_0_linear({start}{{\n    for (volatile int i = 0; i < 1; i = 0) {{}}{body}"
        return generator.Sources({**made.files, "model.c": wrong}, made.names, made.ports)

    monkeypatch.setattr("dsopt.backends.mcu.emitter.generate", hanging)
    monkeypatch.setattr(
        measure, "simulate", lambda *arguments, **options: measured(*arguments, **{**options, "seconds": 0.5})
    )
    with pytest.raises(
        CheckError, match=r"DS1002: the image did not finish within 0\.5 s\n  where: it was in body_0_linear \(0x"
    ) as caught:
        dsopt.compile(captured(Net()), "mcu:cortex-m4")
    assert caught.value.exit_code == 1
