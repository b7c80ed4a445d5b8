"""The fast kernels: their portable bodies on this computer with fences and checks, their assembly on emulated cores, all to the bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from dsopt.artifact import Artifact
from dsopt.backends.base import EmitOptions
from dsopt.backends.mcu import generate, toolchain
from dsopt.backends.mcu.kernels import special_lowerings
from dsopt.backends.tir.lower import lower
from dsopt.backends.tir.program import LoopProgram
from dsopt.ir import Program
from dsopt.runtime.simulated import open_executor
from dsopt.target import McuTarget
from tests.backends.mcu.kernel_cases import BATCHED, BEYOND, CASES, inputs_of, program_of, random_cases, usual
from tests.backends.tir.host_runner import run_on_host
from tests.simulate.images import needs_gcc, needs_qemu

ALL = tuple(CASES)
SIMULATED = [
    pytest.param("cortex-m4", "unicorn", "zig"),
    pytest.param("cortex-m4", "unicorn", "gcc", marks=needs_gcc),
    pytest.param("cortex-m4", "qemu", "zig", marks=needs_qemu),
    pytest.param("cortex-m55", "qemu", "zig", marks=needs_qemu),
    pytest.param("cortex-m55", "qemu", "gcc", marks=[needs_qemu, needs_gcc]),
    pytest.param("cortex-m3", "unicorn", "zig"),
    pytest.param("rv32imc", "unicorn", "zig"),
]
"""The last two run the portable bodies."""


@pytest.fixture(scope="module")
def program() -> Program:
    return program_of(CASES)


@pytest.fixture(scope="module")
def emitted(program: Program) -> Callable[[str, str], Artifact]:
    """Return a function that compiles all cases for a core with a compiler, once each."""
    known: dict[tuple[str, str], Artifact] = {}

    def emit(core: str, compiler: str) -> Artifact:
        if (core, compiler) not in known:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(toolchain.VARIABLE, compiler)
                target = McuTarget(core, ram_bytes=1 << 20, flash_bytes=2 << 20)
                known[core, compiler] = usual(program, target)
        return known[core, compiler]

    return emit


def wrong(program: Program, got: Sequence[np.ndarray], inputs: tuple[torch.Tensor, ...]) -> list[str]:  # type: ignore[type-arg]
    """Return the cases that do not have the bits of the reference."""
    wanted = [value.numpy() for value in program.run(*inputs)]
    return [name for name, one, want in zip(ALL, got, wanted, strict=True) if not np.array_equal(one, want)]


def results(
    artifact: Artifact, program: Program, inputs: tuple[torch.Tensor, ...], simulator: str
) -> tuple[list[np.ndarray], int]:  # type: ignore[type-arg]
    executor = open_executor(artifact, simulator)
    names = [spec.name for spec in program.signature.inputs]
    outputs = executor.run(dict(zip(names, (x.numpy() for x in inputs), strict=True)))
    assert executor.last_simulation is not None
    return [outputs[spec.name] for spec in program.signature.outputs], executor.last_simulation.instructions


@pytest.mark.parametrize("core", ["cortex-m4", "cortex-m55"])
@pytest.mark.parametrize("seed", [0, 1])
def test_portable_bodies_give_the_bits_of_the_reference(program: Program, core: str, seed: int, tmp_path: Path) -> None:
    inputs = inputs_of(CASES, seed)
    got, _ = run_on_host(program, inputs, tmp_path, special=special_lowerings(McuTarget(core)))
    assert wrong(program, got, inputs) == []


@pytest.mark.parametrize("core", ["cortex-m4", "cortex-m55"])
@pytest.mark.parametrize("seed", range(4))
def test_portable_bodies_of_random_layers_give_the_bits_of_the_reference(core: str, seed: int, tmp_path: Path) -> None:
    cases = random_cases(seed, 24)
    program, inputs = program_of(cases), inputs_of(cases, seed)
    got, _ = run_on_host(program, inputs, tmp_path, special=special_lowerings(McuTarget(core)))
    wanted = [value.numpy() for value in program.run(*inputs)]
    assert [name for name, one, want in zip(cases, got, wanted, strict=True) if not np.array_equal(one, want)] == []


@pytest.mark.mcu
@pytest.mark.parametrize(
    ("core", "simulator"), [("cortex-m4", "unicorn"), pytest.param("cortex-m55", "qemu", marks=needs_qemu)]
)
def test_random_layers_give_the_bits_of_the_reference_on_emulated_cores(core: str, simulator: str) -> None:
    cases = random_cases(100, 40)
    program, inputs = program_of(cases), inputs_of(cases, 1)
    artifact = usual(program, McuTarget(core, ram_bytes=1 << 20, flash_bytes=2 << 20))
    got, _ = results(artifact, program, inputs, simulator)
    wanted = [value.numpy() for value in program.run(*inputs)]
    assert [name for name, one, want in zip(cases, got, wanted, strict=True) if not np.array_equal(one, want)] == []


@pytest.mark.parametrize("core", ["cortex-m4", "cortex-m55"])
def test_portable_bodies_take_several_images(core: str, tmp_path: Path) -> None:
    program, inputs = program_of(BATCHED, 2), inputs_of(BATCHED, 1, 2)
    got, _ = run_on_host(program, inputs, tmp_path, special=special_lowerings(McuTarget(core)))
    wanted = [value.numpy() for value in program.run(*inputs)]
    assert [name for name, one, want in zip(BATCHED, got, wanted, strict=True) if not np.array_equal(one, want)] == []


@pytest.mark.mcu
@pytest.mark.parametrize(
    ("core", "simulator"),
    [
        ("cortex-m0plus", "unicorn"),
        ("cortex-m4", "unicorn"),
        pytest.param("cortex-m55", "qemu", marks=needs_qemu),
    ],
)
def test_several_images_run_in_fast_kernels_with_the_bits_of_the_reference(core: str, simulator: str) -> None:
    program, inputs = program_of(BATCHED, 3), inputs_of(BATCHED, 0, 3)
    artifact = usual(program, McuTarget(core, ram_bytes=1 << 20, flash_bytes=2 << 20))
    got, _ = results(artifact, program, inputs, simulator)
    wanted = [value.numpy() for value in program.run(*inputs)]
    assert [name for name, one, want in zip(BATCHED, got, wanted, strict=True) if not np.array_equal(one, want)] == []
    reasons = [entry["why_generic"] for entry in artifact.manifest["layers"] if entry.get("why_generic")]
    assert not [reason for reason in reasons if "batch" in reason]
    wanted_fast = {"q_conv", "q_conv_add", "q_linear"}
    assert wanted_fast <= {e["op"].split(".")[1] for e in artifact.manifest["layers"] if not e.get("why_generic")}


@pytest.mark.mcu
@pytest.mark.parametrize(("core", "simulator", "compiler"), SIMULATED)
def test_emulated_cores_give_the_bits_of_the_reference(
    program: Program, emitted: Callable[[str, str], Artifact], core: str, simulator: str, compiler: str
) -> None:
    for seed in (0, 1):
        inputs = inputs_of(CASES, seed)
        got, _ = results(emitted(core, compiler), program, inputs, simulator)
        assert wrong(program, got, inputs) == []


@pytest.mark.mcu
@pytest.mark.parametrize(
    ("core", "simulator", "style"),
    [
        pytest.param("cortex-m4", "unicorn", "flash"),
        pytest.param("cortex-m55", "qemu", "flash", marks=needs_qemu),
        pytest.param("cortex-m55", "qemu", "speed", marks=needs_qemu),
    ],
)
def test_kernels_made_for_speed_or_flash_give_the_same_bits(
    program: Program, emitted: Callable[[str, str], Artifact], core: str, simulator: str, style: str
) -> None:
    target = McuTarget(core, ram_bytes=1 << 20, flash_bytes=2 << 20)
    artifact = usual(program, target, EmitOptions(optimize=style))
    inputs = inputs_of(CASES, 0)
    got, count = results(artifact, program, inputs, simulator)
    assert wrong(program, got, inputs) == []
    balanced = emitted(core, "zig")
    _, usual_count = results(balanced, program, inputs, simulator)
    less = artifact.manifest["memory"]["flash_bytes"] < balanced.manifest["memory"]["flash_bytes"]
    assert (less, count > usual_count) == (style == "flash", style == "flash")


@pytest.mark.mcu
def test_shifts_beyond_what_kernels_take_fall_back_to_generic_loops() -> None:
    program, inputs = program_of(BEYOND), inputs_of(BEYOND, 0)
    artifact = usual(program, McuTarget("cortex-m4"))
    got, _ = results(artifact, program, inputs, "unicorn")
    for one, want in zip(got, program.run(*inputs), strict=True):
        np.testing.assert_array_equal(one, want.numpy())
    reasons = [
        entry["why_generic"] for entry in artifact.manifest["layers"] if entry["op"].startswith("dsopt.q_linear")
    ]
    assert len(reasons) == len(BEYOND)
    assert all("its requantisation shifts by" in reason for reason in reasons)


@pytest.mark.mcu
@needs_qemu
def test_two_emulators_execute_the_same_instructions(program: Program, emitted: Callable[[str, str], Artifact]) -> None:
    inputs = inputs_of(CASES, 0)
    counts = {results(emitted("cortex-m4", "zig"), program, inputs, name)[1] for name in ("unicorn", "qemu")}
    assert len(counts) == 1


@pytest.mark.mcu
@pytest.mark.parametrize("core", ["cortex-m4", "cortex-m55"])
def test_every_layer_has_a_fast_kernel(emitted: Callable[[str, str], Artifact], core: str) -> None:
    layers = emitted(core, "zig").manifest["layers"]
    assert {entry["function"]: entry["why_generic"] for entry in layers if entry.get("why_generic")} == {}
    assert {"q_conv", "q_conv_add", "q_linear"} <= {entry["op"].split(".")[1] for entry in layers}


@pytest.mark.mcu
@pytest.mark.parametrize(
    ("core", "simulator", "line", "other"),
    [
        ("cortex-m4", "unicorn", "asr r11, r11, #1", "asr r11, r11, #2"),
        pytest.param("cortex-m55", "qemu", "vrshl.s32", "vshl.s32", marks=needs_qemu),
    ],
)
def test_a_wrong_rounding_is_found(
    monkeypatch: pytest.MonkeyPatch, core: str, simulator: str, line: str, other: str
) -> None:
    whole = generate.kernels_header

    def altered(*arguments: object) -> str:
        text = whole(*arguments)  # type: ignore[arg-type]
        assert line in text
        return text.replace(line, other)

    monkeypatch.setattr(generate, "kernels_header", altered)
    cases = {name: CASES[name] for name in ALL[::4]}
    program, inputs = program_of(cases), inputs_of(cases, 0)
    artifact = usual(program, McuTarget(core, ram_bytes=1 << 20, flash_bytes=2 << 20))
    got, _ = results(artifact, program, inputs, simulator)
    wanted = [value.numpy() for value in program.run(*inputs)]
    assert sum(not np.array_equal(one, want) for one, want in zip(got, wanted, strict=True)) > len(cases) // 2


def test_functions_of_kernels_are_told_apart_by_name(program: Program) -> None:
    """Two layers that need different functions never get one of the same name."""
    for core in ("cortex-m4", "cortex-m55"):
        loops: LoopProgram = lower(program, special_lowerings(McuTarget(core)))
        assert len(generate.micro_kernels(loops)) > 20
