"""QEMU counts layers as Unicorn does, to the instruction: layers that nest, that share helpers, that are jumped to."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import dsopt
import models
from dsopt import api
from dsopt.backends.mcu import toolchain
from dsopt.errors import CheckError, UsageError
from dsopt.ir import example_inputs
from dsopt.runtime.simulated import open_executor
from dsopt.simulate import probes as package
from dsopt.simulate import simulate
from dsopt.simulate.boards import BOARDS
from dsopt.simulate.probes import Probes, instructions_by_layer
from tests.simulate.images import NO_PORTS, assembler, image, needs_gcc, needs_qemu
from tests.simulate.test_counting import LAYERED, LAYERED_TABLES, LAYERS

QEMU_CORES = ["cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33"]

# An outer layer that calls two inner ones, one of them twice, takes arguments on the stack and returns 64 bits.
NESTED = """
#include <stdint.h>
uint64_t layer_outer(uint32_t a, uint32_t b, uint32_t c, uint32_t d, uint32_t e, uint32_t f);
uint32_t layer_inner(uint32_t a, uint32_t b, uint32_t c, uint32_t d, uint32_t e);
void layer_leaf(void);
extern uint32_t y[2];
uint32_t y[2];
__attribute__((noinline)) void layer_leaf(void) { __asm__ volatile("nop"); }
__attribute__((noinline)) uint32_t layer_inner(uint32_t a, uint32_t b, uint32_t c, uint32_t d, uint32_t e) {
  for (volatile uint32_t i = 0; i < e; ++i) layer_leaf();
  return a + 2 * b + 3 * c + 4 * d + 5 * e;
}
__attribute__((noinline)) uint64_t layer_outer(uint32_t a, uint32_t b, uint32_t c, uint32_t d, uint32_t e, uint32_t f) {
  const uint32_t first = layer_inner(b, c, d, e, f);
  layer_leaf();
  return (uint64_t)layer_inner(first, a, b, c, d) << 32 | (e + f);
}
"""
NESTED_TABLES = """
#include "harness.h"
extern uint32_t y[2];
uint64_t layer_outer(uint32_t a, uint32_t b, uint32_t c, uint32_t d, uint32_t e, uint32_t f);
const harness_span harness_inputs[] = {{0, 0}};
const uint32_t harness_input_count = 0;
const harness_span harness_outputs[] = {{y, 8}};
const uint32_t harness_output_count = 1;
void harness_init(void) {}
int harness_run(void) {
  const uint64_t both = layer_outer(1, 2, 3, 4, 5, 6);
  y[0] = (uint32_t)both;
  y[1] = (uint32_t)(both >> 32);
  return 0;
}
"""


@needs_qemu
@pytest.mark.mcu
@pytest.mark.parametrize("core", QEMU_CORES)
def test_layers_that_share_a_helper_and_are_jumped_to_count_the_same(core: str) -> None:
    elf = image(LAYERED, LAYERED_TABLES, core)
    done = simulate(elf, core, layers=LAYERS, simulator="qemu", runs=[()] * 3)
    assert {name: cost.instructions for name, cost in done.layers.items()} == {"layer_first": 126, "layer_second": 36}
    assert done.run_instructions == (72,) * 3
    assert done.layers["layer_first"].estimated_cycles is None


@needs_qemu
@pytest.mark.mcu
@pytest.mark.parametrize("compiler", ["zig", pytest.param("gcc", marks=needs_gcc)])
@pytest.mark.parametrize("core", QEMU_CORES)
def test_layers_that_nest_count_for_themselves_and_pass_what_they_should(core: str, compiler: str) -> None:
    elf = image(NESTED, NESTED_TABLES, core, compiler)
    layers = ["layer_outer", "layer_inner", "layer_leaf"]
    first = simulate(elf, core, layers=layers, simulator="unicorn", runs=[()] * 2)
    second = simulate(elf, core, layers=layers, simulator="qemu", runs=[()] * 2)
    inner = 2 + 2 * 3 + 3 * 4 + 4 * 5 + 5 * 6
    wanted = (5 + 6).to_bytes(4, "little") + (inner + 2 * 1 + 3 * 2 + 4 * 3 + 5 * 4).to_bytes(4, "little")
    assert first.outputs == second.outputs == ((wanted,),) * 2
    counts = [{name: cost.instructions for name, cost in done.layers.items()} for done in (first, second)]
    assert counts[0] == counts[1]
    assert first.run_instructions == second.run_instructions


class Net(nn.Module):
    """Fast kernels and generic loops, floats at the borders, a state: what the code generator makes layers of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU6(), nn.Conv2d(8, 16, 1))
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.depthwise(self.stem(x))
        return self.head(nn.functional.avg_pool2d(nn.functional.hardswish(x), 8).flatten(1)).softmax(-1)


def built(core: str, seed: int = 0) -> api.Build:
    torch.manual_seed(seed)
    program = dsopt.capture(Net().eval(), (torch.zeros(1, 3, 8, 8),))
    samples = [{program.signature.inputs[0].name: torch.randn(1, 3, 8, 8).numpy()} for _ in range(8)]
    return api.build(program, f"mcu:{core}", "...,quantize", samples)


@needs_qemu
@pytest.mark.mcu
@pytest.mark.parametrize("core", ["cortex-m4", "cortex-m33"])
def test_each_layer_of_a_quantised_net_takes_as_many_instructions_on_both_emulators(core: str) -> None:
    artifact = built(core).artifact
    feed = {artifact.manifest["inputs"][0]["name"]: torch.randn(1, 3, 8, 8).numpy()}
    first, second = (open_executor(artifact, simulator).profile(feed) for simulator in ("unicorn", "qemu"))
    assert first == second
    assert len(first.layers) > 5
    assert all(layer.instructions for layer in first.layers)


@needs_qemu
@pytest.mark.mcu
@pytest.mark.slow
@pytest.mark.parametrize("name", ["ad", "ic", "kws", "vww"])
def test_each_layer_of_the_networks_of_mlperf_tiny_is_the_same_on_both_emulators(name: str) -> None:
    program = dsopt.capture(models.build(name)).specialize({"batch": 1})
    (port,) = program.signature.inputs
    samples = [{port.name: example_inputs(program, seed=seed)[0].numpy()} for seed in range(4)]
    artifact = api.build(program, "mcu:cortex-m4", "...,quantize", samples[1:], io="int8").artifact
    executors = [open_executor(artifact, simulator) for simulator in ("unicorn", "qemu")]
    first, second = (executor.profile(samples[0]) for executor in executors)
    assert first == second
    one, other = (executor.run(samples[0]) for executor in executors)
    assert all((one[key] == other[key]).all() for key in one)


@needs_qemu
@pytest.mark.mcu
def test_the_manifest_has_the_instructions_of_each_layer_on_a_cortex_m55() -> None:
    manifest = built("cortex-m55").artifact.manifest
    counts = [row["instructions"] for row in manifest["layers"]]
    assert all(type(count) is int and count > 0 for count in counts)
    assert {row["estimated_cycles"] for row in manifest["layers"]} == {None}
    assert 0 < manifest["memory"]["instructions"] - sum(counts) < 40 + 20 * len(counts)  # the calls


@pytest.mark.mcu
@pytest.mark.parametrize("compiler", ["zig", pytest.param("gcc", marks=needs_gcc)])
def test_the_bytes_of_a_probe_are_those_of_its_text(compiler: str, tmp_path: Path) -> None:
    source = Path(package.__file__).with_name("probe.S")
    if compiler == "zig":
        found = toolchain._find_zig()
        assert found is not None
        command = [*found.command, "-target", "thumb-freestanding-eabi", "-mcpu=cortex_m3"]
    else:
        command = [str(shutil.which(toolchain.GCC)), "-mcpu=cortex-m3", "-mthumb"]
    subprocess.run([*command, "-c", str(source), "-o", "probe.o"], cwd=tmp_path, check=True, timeout=120)
    from elftools.elf.elffile import ELFFile

    with (tmp_path / "probe.o").open("rb") as file:
        code = ELFFile(file).get_section_by_name(".text").data()
    assert code == package.CODE + bytes(24)


@given(st.integers(0, 1 << 26).map(lambda half: 2 * half), st.integers(-(1 << 23), (1 << 23) - 1), st.booleans())
def test_a_branch_leads_where_it_was_led(address: int, halfwords: int, is_call: bool) -> None:
    target = address + 4 + 2 * halfwords
    assert package._target(address, package._branch(address, target, is_call)) == (target, is_call)


@pytest.mark.parametrize("code", ["00bf00bf", "dff864c0", "4ff00001", "00f00088", "f3f7c0e8"])
def test_what_is_no_branch_leads_nowhere(code: str) -> None:
    """nop; nop, ldr.w, mov.w, beq.w and blx, which no Cortex-M has."""
    assert package._target(0, bytes.fromhex(code)) is None


@needs_qemu
@pytest.mark.mcu
def test_a_log_that_is_full_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "_MOST_ENTRIES", 10)
    elf = image(LAYERED, LAYERED_TABLES)
    assert simulate(elf, "cortex-m4", layers=LAYERS, simulator="qemu").layers["layer_first"].instructions == 42
    with pytest.raises(UsageError, match=r"DS1013: QEMU's board has no memory to count so many calls"):
        simulate(elf, "cortex-m4", layers=LAYERS, simulator="qemu", runs=[()] * 2)


@needs_qemu
@pytest.mark.mcu
def test_without_room_for_probes_only_whole_runs_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "_MOST_ENTRIES", 5)
    done = simulate(image(LAYERED, LAYERED_TABLES), "cortex-m4", layers=LAYERS, simulator="qemu")
    assert (done.layers, done.instructions) == ({}, 72)


def test_a_log_that_contradicts_itself_is_refused() -> None:
    probes = Probes(b"", ("", "layer"), 0, b"", 0, b"")
    for events in ([3], [2, 1], [8, 9]):
        entries = b"".join(event.to_bytes(4, "little") + bytes(4) for event in events)
        with pytest.raises(CheckError, match="DS1004"):
            instructions_by_layer(probes, entries, BOARDS["cortex-m4"], 128_000)


@needs_qemu
@pytest.mark.mcu
def test_a_layer_that_is_not_called_costs_nothing() -> None:
    tables = "int layer_first(void);\n" + NO_PORTS + assembler("harness_run", "nop; movs r0, #0; bx lr")
    elf = image(LAYERED, tables.replace("void harness_init(void) {}", "void harness_init(void) { layer_first(); }"))
    done = simulate(elf, "cortex-m4", layers=["layer_first"], simulator="qemu")
    assert done.instructions == 3
    assert done.layers["layer_first"].instructions == 0
