"""Kernels chosen by what is measured: every way gives the same bits, and the choice keeps budgets, says its reasons and repeats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dsopt
from dsopt import api
from dsopt.artifact import Artifact
from dsopt.backends.base import EmitOptions
from dsopt.backends.mcu import McuBackend, trial
from dsopt.backends.mcu.chosen import build_chosen
from dsopt.backends.mcu.emitter import Emitter
from dsopt.backends.mcu.kernels import special_lowerings
from dsopt.backends.mcu.kernels.ways import Ways
from dsopt.backends.tir.lower import lower
from dsopt.errors import BudgetError
from dsopt.ir import Program
from dsopt.runtime.simulated import open_executor
from dsopt.target import McuTarget
from tests.backends.mcu.desk import prepared
from tests.backends.mcu.kernel_cases import CASES, inputs_of, program_of
from tests.simulate.images import needs_qemu

pytestmark = pytest.mark.mcu

ROOM = {"ram_bytes": 1 << 20, "flash_bytes": 2 << 20}


class Net(nn.Module):
    """A stem, two layers that differ in weights only, a depthwise one, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.classifier = nn.Linear(8 * 6 * 6, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.depthwise(self.body(self.stem(x).relu())).relu().flatten(1))


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    samples = {"x": np.random.default_rng(0).standard_normal((16, 3, 12, 12), dtype=np.float32)}
    captured = dsopt.capture(Net().eval(), (torch.zeros(1, 3, 12, 12),))
    return api.build(captured, "mcu:cortex-m4", "...,quantize", samples).program


@pytest.fixture
def emit(program: Program) -> Callable[..., Artifact]:
    def made(core: str = "cortex-m4", optimize: str = "balanced", **limits: int) -> Artifact:
        return McuBackend().emit(program, McuTarget(core, **(ROOM | limits)), EmitOptions(optimize=optimize))

    return made


def need(artifact: Artifact) -> tuple[int, int]:
    """Return instructions and bytes of flash."""
    memory = artifact.manifest["memory"]
    return memory["instructions"], memory["flash_bytes"]


def kernels(artifact: Artifact) -> list[str]:
    return [row["kernel"] for row in artifact.manifest["layers"]]


@pytest.mark.parametrize("core", ["cortex-m0plus", "cortex-m4", pytest.param("cortex-m55", marks=needs_qemu)])
def test_every_way_to_write_a_layer_gives_the_bits_of_the_reference(core: str) -> None:
    cases = {name: CASES[name] for name in list(CASES)[::8]}
    program, inputs = program_of(cases), inputs_of(cases, 0)
    wanted = [value.numpy() for value in program.run(*inputs)]
    target, ways = McuTarget(core, **ROOM), Ways()
    lower(program, special_lowerings(target, "balanced", ways))
    numbers = sorted({way.number for layer in ways.layers for way in layer[1:]})
    assert len(numbers) >= 2
    emitter = Emitter(target, EmitOptions())
    for number in numbers:
        chosen = {n: number for n, layer in enumerate(ways.layers) if number in [way.number for way in layer]}
        built = emitter.build(emitter.place(program, chosen=chosen))
        names = [spec.name for spec in program.signature.inputs]
        got = open_executor(built.artifact).run(dict(zip(names, (x.numpy() for x in inputs), strict=True)))
        outputs = [got[spec.name] for spec in program.signature.outputs]
        wrong = [name for name, one, want in zip(cases, outputs, wanted, strict=True) if not np.array_equal(one, want)]
        assert wrong == [], f"way {number}"


@pytest.mark.parametrize("core", ["cortex-m0plus", "cortex-m4", pytest.param("cortex-m55", marks=needs_qemu)])
def test_rows_say_what_each_way_takes_and_which_was_chosen(emit: Callable[..., Artifact], core: str) -> None:
    artifact = emit(core)
    rows = artifact.manifest["layers"]
    assert artifact.manifest["kernel_choice"] == "measured instructions and bytes of each layer"
    tried = [row for row in rows if "candidates" in row]
    assert {row["layer"] for row in tried} >= {"body.0", "body.2", "depthwise", "classifier"}
    for row in tried:
        (chosen,) = [each for each in row["candidates"] if each["chosen"]]
        assert chosen["kernel"] == row["kernel"]
        assert len({each["kernel"] for each in row["candidates"]}) == len(row["candidates"]) > 1
        # Alone in an image or not, a layer takes the same but for how its arguments come to it.
        assert row["instructions"] == pytest.approx(chosen["instructions"], rel=0.05, abs=40)
    first, second = (next(row for row in tried if row["layer"] == name) for name in ("body.0", "body.2"))
    assert first["candidates"] == second["candidates"]


@pytest.mark.parametrize("optimize", ["balanced", "ram", "flash"])
def test_no_choice_takes_more_memory_than_the_usual_kernels(program: Program, optimize: str) -> None:
    target = McuTarget("cortex-m4", **ROOM)
    emitter = Emitter(target, EmitOptions(optimize=optimize))
    placed = emitter.place(program)
    usual = emitter.build(placed).artifact.manifest["memory"]
    chosen = build_chosen(emitter, placed).artifact.manifest["memory"]
    assert chosen["arena_bytes"] <= usual["arena_bytes"]
    assert chosen["flash_bytes"] <= usual["flash_bytes"]
    if optimize != "flash":
        assert chosen["instructions"] <= usual["instructions"]


def test_code_for_speed_is_the_fastest_and_code_for_flash_the_smallest(emit: Callable[..., Artifact]) -> None:
    fast, usual, small = (need(emit(optimize=name)) for name in ("speed", "balanced", "flash"))
    assert fast[0] < usual[0] < small[0]
    assert fast[1] > usual[1] > small[1]


def test_a_limit_on_flash_that_the_usual_kernels_miss_is_met_by_smaller_ones(emit: Callable[..., Artifact]) -> None:
    instructions, flash_bytes = need(emit())
    with pytest.raises(BudgetError, match="DS0602") as caught:
        emit(flash_bytes=flash_bytes // 2)
    least = int(caught.value.what.partition("need ")[2].partition(" bytes")[0].replace(",", ""))
    assert least < flash_bytes - 100
    less = need(emit(flash_bytes=least))
    assert less[0] > instructions
    assert less[1] == least


def test_a_limit_on_instructions_that_the_usual_kernels_miss_is_met_by_faster_ones(
    emit: Callable[..., Artifact],
) -> None:
    (fastest, _), (instructions, flash_bytes) = need(emit(optimize="speed")), need(emit())
    limit = (fastest + instructions) // 2
    faster = emit(instructions=limit)
    assert need(faster)[0] <= limit
    assert need(faster)[1] > flash_bytes
    with pytest.raises(BudgetError, match="DS0603"):
        emit(instructions=fastest // 2)


def test_a_core_that_nothing_emulates_gets_the_usual_kernels_and_the_manifest_says_why(
    emit: Callable[..., Artifact],
) -> None:
    artifact = emit("cortex-m85")
    why = "nothing emulates a cortex-m85: code for it is compiled and assembled only"
    assert artifact.manifest["kernel_choice"] == f"count of instructions: {why}"
    assert not any("candidates" in row for row in artifact.manifest["layers"])


def test_the_same_program_gets_the_same_kernels_and_is_measured_once(
    emit: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "_KNOWN", {})
    first = emit()
    monkeypatch.setattr(trial, "_KNOWN", {})
    second = emit()
    assert first.manifest == second.manifest
    assert dict(first.files) == dict(second.files)
    monkeypatch.setattr(trial, "build_and_measure", never)
    assert emit().manifest == first.manifest


def never(*_: Any) -> Any:
    raise AssertionError


def test_nothing_is_tried_where_each_layer_has_one_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "build_and_measure", never)
    floats = prepared(dsopt.capture(Net().eval(), (torch.zeros(1, 3, 12, 12),)))
    assert "kernel_choice" not in McuBackend().emit(floats, McuTarget(**ROOM), EmitOptions()).manifest


def test_where_a_trial_cannot_be_run_the_usual_kernels_stand(
    emit: Callable[..., Artifact], program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise dsopt.errors.ToolchainError("DS1021", "zig could not link the image")

    monkeypatch.setattr(trial, "_KNOWN", {})
    monkeypatch.setattr(trial, "build_and_measure", fails)
    artifact = emit()
    emitter = Emitter(McuTarget("cortex-m4", **ROOM), EmitOptions())
    assert artifact.manifest["kernel_choice"] == "count of instructions: zig could not link the image"
    assert kernels(artifact) == kernels(emitter.build(emitter.place(program)).artifact)
