"""The backend as the build uses it: blockers, budgets, and images measured on emulated cores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dsopt
from dsopt.artifact import Artifact
from dsopt.backends.base import EmitOptions
from dsopt.backends.mcu import McuBackend
from dsopt.backends.mcu.generate import Sources, generate
from dsopt.errors import BudgetError, CheckError, UnsupportedOpError
from dsopt.ir import Program, example_inputs
from dsopt.simulate import simulate
from dsopt.target import McuTarget
from tests.backends.mcu.desk import prepared
from tests.backends.tir.host_runner import relative_error

Capture = Callable[..., Program]


class Blocked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x)
        return torch.fft.rfft(x).real, torch.linalg.inv(x @ x.T)


def test_all_blockers_are_named_at_once_with_the_users_lines() -> None:
    program = prepared(dsopt.capture(Blocked(), (torch.randn(4, 4),)))
    found = McuBackend().unsupported(program, McuTarget())
    assert {blocker.op.split(".")[1] for blocker in found} == {"fft_rfft", "linalg_inv"}
    assert all("test_backend.py" in blocker.source for blocker in found)


def test_a_varying_size_is_refused_with_the_option_that_fixes_it(conv_program: Program) -> None:
    found = McuBackend().unsupported(prepared(conv_program), McuTarget())
    assert len(found) == 1
    assert "varies, and generated loops need fixed sizes" in str(found[0])
    assert "--dim batch=" in str(found[0])


def test_double_precision_is_refused_with_the_way_out(capture_function: Capture) -> None:
    program = capture_function(lambda x: x * 2, torch.randn(3, dtype=torch.float64))
    assert "float64 are not supported" in str(McuBackend().unsupported(program, McuTarget())[0])
    with pytest.raises(UnsupportedOpError, match="DS0401"):
        McuBackend().emit(program, McuTarget(), EmitOptions())


def test_indexing_with_a_mask_names_the_form_that_works(capture_function: Capture) -> None:
    program = capture_function(
        lambda x: torch.where(x > 0, x, 0.0).sum() + x[torch.tensor([True, False])].sum(), torch.randn(2)
    )
    found = McuBackend().unsupported(program, McuTarget())
    assert len(found) == 1
    assert "torch.where or masked_fill in place of indexing with a mask" in found[0].fix


def test_too_little_ram_is_refused_with_the_largest_values(conv_program: Program) -> None:
    program = prepared(conv_program.specialize({"batch": 1}))
    with pytest.raises(BudgetError) as caught:
        McuBackend().emit(program, McuTarget(ram_bytes=2048), EmitOptions())
    assert caught.value.code == "DS0601"
    assert "and mcu:cortex-m4 here has 2,048" in caught.value.what
    assert "stem_0_conv: 2,048 bytes, float32 [1, 8, 8, 8]" in caught.value.where


def test_too_little_flash_is_refused_with_the_largest_weights(capture_function: Capture) -> None:
    program = prepared(dsopt.capture(nn.Linear(64, 64).eval(), (torch.randn(1, 64),)))
    with pytest.raises(BudgetError) as caught:
        McuBackend().emit(program, McuTarget(flash_bytes=8192), EmitOptions())
    assert caught.value.code == "DS0602"
    assert "weight: 16,384 bytes, float32 [64, 64]" in caught.value.where


def emulate(artifact: Artifact, program: Program, core: str, steps: int) -> list[list[np.ndarray]]:  # type: ignore[type-arg]
    """Run an image from the first values of its states. Returns the outputs of each step."""
    states = [program.weights[state.name].numpy().tobytes() for state in program.states]
    results = []
    for step in range(steps):
        inputs = [value.numpy().tobytes() for value in example_inputs(program, seed=step)]
        found = simulate(artifact.files["image.elf"], core, runs=[[*inputs, *states]])
        values = list(found.outputs[0])
        count = len(program.outputs)
        states = values[count:]
        nodes = [node.meta["val"] for node in program.outputs]
        arrays = [
            np.frombuffer(v, str(n.dtype)[6:]).reshape(tuple(n.shape)) for v, n in zip(values, nodes, strict=False)
        ]
        results.append(arrays)
    return results


def agrees(artifact: Artifact, program: Program, core: str, steps: int = 1) -> float:
    """Return the largest relative error of any output of any step on an emulated core."""
    worst, states = 0.0, None
    for step, got in enumerate(emulate(artifact, program, core, steps)):
        wanted, states = program.run_stateful(example_inputs(program, seed=step), states)
        worst = max(worst, *(relative_error(one, other.numpy()) for one, other in zip(got, wanted, strict=True)))
    return worst


@pytest.mark.mcu
@pytest.mark.parametrize("core", ["cortex-m0", "cortex-m4", "cortex-m33", "rv32imc", "rv32imafc"])
def test_an_image_gives_eagers_numbers_on_emulated_cores(core: str, conv_program: Program) -> None:
    program = prepared(conv_program.specialize({"batch": 1}))
    artifact = McuBackend().emit(program, McuTarget(core), EmitOptions())
    assert agrees(artifact, program, core) < 1e-5
    memory = artifact.manifest["memory"]
    assert memory["arena_bytes"] <= memory["static_bytes"] <= memory["ram_bytes"] < memory["arena_bytes"] + 2048
    assert 0 < memory["stack_bytes"] < 1024
    assert memory["weight_bytes"] < memory["flash_bytes"] < memory["weight_bytes"] + 20_000


@pytest.mark.mcu
def test_an_image_that_nothing_emulates_says_that_it_was_not_run(conv_program: Program) -> None:
    program = prepared(conv_program.specialize({"batch": 1}))
    artifact = McuBackend().emit(program, McuTarget("cortex-m85"), EmitOptions())
    why = "nothing emulates a cortex-m85: code for it is compiled and assembled only"
    assert artifact.manifest["memory"]["why_not_run"] == why
    assert McuBackend().check_executor(artifact) == (None, why)


@pytest.mark.mcu
def test_every_layer_has_its_instructions_and_their_sum_is_the_run(conv_program: Program) -> None:
    program = prepared(conv_program.specialize({"batch": 1}))
    manifest = McuBackend().emit(program, McuTarget(), EmitOptions()).manifest
    counted = [layer["instructions"] for layer in manifest["layers"]]
    assert all(count > 0 for count in counted)
    assert 0 <= manifest["memory"]["instructions"] - sum(counted) < 40 + 20 * len(counted)
    layer = manifest["layers"][0]
    assert (layer["function"], layer["layer"], layer["shape"]) == ("stem_0_conv", "stem.0", [1, 8, 8, 8])
    assert layer["trace"]["symbol"] == "model_arena"


class Mixed(nn.Module):
    """What a convolutional network has not: recurrence, attention, every function of dsopt_math.h, a state."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 4, batch_first=True)
        self.attention = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, activation="gelu")
        self.register_buffer("seen", torch.zeros(1, 5, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.attention(self.gru(x)[0])
        self.seen.mul_(0.5).add_(y)
        z = self.seen
        functions = torch.stack(
            [z.sin(), z.cos(), z.exp(), z.abs().log1p(), z.tanh(), z.erf(), torch.expm1(z), z.abs() ** 1.3]
        )
        return functions, torch.atan2(z, z + 1).floor() + z.round() + z.abs().sqrt()


@pytest.mark.mcu
@pytest.mark.parametrize("core", ["cortex-m3", "cortex-m4"])
def test_recurrence_attention_and_mathematics_run_on_emulated_cores(core: str) -> None:
    program = prepared(dsopt.capture(Mixed().eval(), (torch.randn(1, 5, 4),)))
    artifact = McuBackend().emit(program, McuTarget(core), EmitOptions())
    assert agrees(artifact, program, core, steps=2) < 1e-5


@pytest.mark.mcu
def test_a_planted_miscompile_fails_the_build(conv_program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def miscompile(*arguments: object) -> Sources:
        made = generate(*arguments)  # type: ignore[arg-type]
        wrong = made.files["model.c"].replace("total += x[", "total -= x[", 1)
        assert wrong != made.files["model.c"]
        return replace(made, files={**made.files, "model.c": wrong})

    monkeypatch.setattr("dsopt.backends.mcu.emitter.generate", miscompile)
    with pytest.raises(CheckError, match="output"):
        dsopt.compile(conv_program.specialize({"batch": 1}), "mcu:cortex-m4")


@pytest.mark.mcu
def test_the_same_program_gives_the_same_artifact(conv_program: Program) -> None:
    program = prepared(conv_program.specialize({"batch": 1}))
    first, second = (McuBackend().emit(program, McuTarget(), EmitOptions()) for _ in range(2))
    assert first.manifest == second.manifest
    assert dict(first.files) == dict(second.files)
