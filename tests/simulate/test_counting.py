"""Counts are exact: of instructions written by hand, the same with and without a C compiler, in Unicorn and in QEMU."""

from __future__ import annotations

from typing import Any

import pytest

from dsopt.simulate import simulate
from dsopt.simulate import unicorn as unicorn_runner
from tests.simulate.images import NO_PORTS, assembler, image, needs_gcc, needs_qemu, run_image

pytestmark = pytest.mark.mcu

LOOP = "movs r0, #100; 1: subs r0, #1; bne 1b; nop; nop; bx lr"
LOOP_INSTRUCTIONS = 1 + 2 * 100 + 2 + 1

# Two layers that share a helper; main calls the first one twice, and the second by a tail call.
LAYERED = """
int model_main(void);
int layer_first(void);
int layer_second(void);
int helper(void);
""" + "".join(
    (
        assembler("helper", "movs r1, #3; 1: subs r1, #1; bne 1b; bx lr"),  # 8
        assembler("layer_first", "push {r4, lr}; nop; bl helper; bl helper; pop {r4, pc}"),  # 5, with helpers 21
        assembler("layer_second", "push {r4, lr}; bl helper; movs r0, #0; pop {r4, pc}"),  # 4, with helper 12
        assembler("model_main", "push {r4, lr}; bl layer_first; bl layer_first; bl helper; pop {r2, r3}; mov lr, r3; b layer_second"),
    )
)  # fmt: skip
LAYERED_TABLES = (
    "int model_main(void);\n" + NO_PORTS + assembler("harness_run", "push {r4, lr}; bl model_main; pop {r4, pc}")
)
LAYERS = ("layer_first", "layer_second")


def _python_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unicorn_runner, "block_counter_library", lambda: None)


@pytest.mark.parametrize("core", ["cortex-m0plus", "cortex-m4"])
def test_a_run_counts_the_instructions_that_were_written(core: str) -> None:
    done = simulate(run_image(LOOP, core), core, simulator="unicorn")
    assert done.run_instructions == (LOOP_INSTRUCTIONS,)
    assert done.instructions == LOOP_INSTRUCTIONS
    assert {name: cost.instructions for name, cost in done.functions.items()} == {"harness_run": LOOP_INSTRUCTIONS}


RISCV_LOOP = "li a0, 100; 1: addi a0, a0, -1; bnez a0, 1b; c.nop; lui a1, 0x12345; c.nop; ret"


@pytest.mark.parametrize("core", ["rv32imc", "rv32imafc"])
def test_a_run_on_riscv_counts_what_was_written(core: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = simulate(run_image(RISCV_LOOP, core), core)
    assert compiled.run_instructions == (1 + 2 * 100 + 3 + 1,)
    assert compiled.estimated_cycles is None
    _python_counter(monkeypatch)
    assert simulate(run_image(RISCV_LOOP, core), core) == compiled


def test_layers_on_riscv_count_what_they_call() -> None:
    model = """
int layer_first(void);
int layer_second(void);
int helper(void);
""" + "".join(
        (
            assembler("helper", "li a1, 3; 1: addi a1, a1, -1; bnez a1, 1b; ret", "riscv"),  # 8
            assembler("layer_first", "addi sp, sp, -16; sw ra, 12(sp); call helper; lw ra, 12(sp); addi sp, sp, 16; ret", "riscv"),
            assembler("layer_second", "tail helper", "riscv"),
        )
    )  # fmt: skip
    run = assembler(
        "harness_run",
        "addi sp, sp, -16; sw ra, 0(sp); call layer_first; call layer_second; li a0, 0; lw ra, 0(sp); addi sp, sp, 16; ret",
        "riscv",
    )
    tables = "int layer_first(void);\nint layer_second(void);\n" + NO_PORTS + run
    done = simulate(image(model, tables, "rv32imc"), "rv32imc", layers=LAYERS)
    counts = {name: cost.instructions for name, cost in done.functions.items()}
    assert counts["helper"] == 16
    # a call is one instruction or two, as the linker found it in reach
    assert done.layers["layer_first"].instructions == 8 + counts["layer_first"]
    assert done.layers["layer_second"].instructions == 8 + counts["layer_second"]
    assert done.instructions == sum(counts.values())
    assert done.stack_bytes == 16 + 4  # down to the lowest word that was written


def test_skipped_and_long_instructions_count_one_each() -> None:
    lines = (
        "movs r0, #0; cmp r0, #1; ite eq; moveq r0, #7; movne r0, #0; add.w r1, r0, r0, lsl #3; movw r2, #4097; bx lr"
    )
    assert simulate(run_image(lines), "cortex-m4", simulator="unicorn").instructions == 8


def test_a_layer_counts_what_it_calls_and_a_function_does_not() -> None:
    done = simulate(image(LAYERED, LAYERED_TABLES), "cortex-m4", layers=LAYERS, simulator="unicorn")
    assert {name: cost.instructions for name, cost in done.layers.items()} == {"layer_first": 42, "layer_second": 12}
    assert {name: cost.instructions for name, cost in done.functions.items()} == {
        "helper": 6 * 8, "layer_first": 10, "model_main": 7, "layer_second": 4, "harness_run": 3,
    }  # fmt: skip
    assert done.instructions == 48 + 10 + 7 + 4 + 3


def test_a_leaf_layer_that_jumps_to_its_own_entry_is_one_layer() -> None:
    layer = assembler("layer_loop", "subs r3, #1; bne layer_loop; bx lr")
    tables = "int layer_loop(void);\n" + NO_PORTS + assembler(
        "harness_run", "push {r4, lr}; movs r3, #200; bl layer_loop; nop; movs r0, #0; pop {r4, pc}"
    )  # fmt: skip
    done = simulate(
        image("int layer_loop(void);\n" + layer, tables), "cortex-m4", layers=["layer_loop"], simulator="unicorn"
    )
    assert done.layers["layer_loop"].instructions == 401
    assert done.instructions == 401 + 6


@pytest.mark.parametrize("lines", [LOOP, "nop; " * 700 + "bx lr", "b 1f; 1: " * 9000 + "movs r0, #0; bx lr"])
def test_the_counter_in_python_counts_like_the_compiled_one(lines: str, monkeypatch: pytest.MonkeyPatch) -> None:
    elf = run_image(lines.replace("nop; bx lr", "movs r0, #0; bx lr"))
    compiled = simulate(elf, "cortex-m4", simulator="unicorn")
    assert unicorn_runner.block_counter_library() is not None
    _python_counter(monkeypatch)
    assert simulate(elf, "cortex-m4", simulator="unicorn") == compiled


def test_the_counters_agree_on_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    elf = image(LAYERED, LAYERED_TABLES)
    runs: dict[str, Any] = {"runs": [()] * 1500, "layers": LAYERS, "simulator": "unicorn"}
    compiled = simulate(elf, "cortex-m4", **runs)
    _python_counter(monkeypatch)
    assert simulate(elf, "cortex-m4", **runs) == compiled
    assert compiled.run_instructions == (72,) * 1500


@needs_qemu
@pytest.mark.parametrize(
    ("core", "compiler"),
    [
        ("cortex-m3", "zig"),
        ("cortex-m4", "zig"),
        ("cortex-m7", "zig"),
        ("cortex-m33", "zig"),
        pytest.param("cortex-m3", "gcc", marks=needs_gcc),
        pytest.param("cortex-m33", "gcc", marks=needs_gcc),
    ],
)
def test_qemu_counts_like_unicorn(core: str, compiler: str) -> None:
    elf = image(SORT, SORT_TABLES, core, compiler)
    runs = [[bytes((7 * i * i + seed) & 255 for i in range(64))] for seed in range(5)]
    first = simulate(elf, core, runs=runs, simulator="unicorn")
    second = simulate(elf, core, runs=runs, simulator="qemu")
    assert len(set(first.run_instructions)) > 1
    assert second.run_instructions == first.run_instructions
    assert second.outputs == first.outputs == tuple((bytes(sorted(run[0])),) for run in runs)
    assert second.stack_bytes == first.stack_bytes


@needs_qemu
@pytest.mark.parametrize("lines", ["bx lr", "nop; " * 12 + "bx lr", LOOP])
def test_qemu_counts_what_was_written_to_the_instruction(lines: str) -> None:
    text = lines if lines == LOOP else lines.replace("bx lr", "movs r0, #0; bx lr")
    done = simulate(run_image(text), "cortex-m4", simulator="qemu")
    assert done.instructions == (LOOP_INSTRUCTIONS if lines == LOOP else text.count(";") + 1)


@needs_qemu
def test_a_cortex_m55_runs_in_qemu() -> None:
    done = simulate(run_image(LOOP, "cortex-m55"), "cortex-m55")
    assert (done.simulator, done.instructions) == ("qemu", LOOP_INSTRUCTIONS)
    assert done.layers == done.functions == {}
    assert done.estimated_cycles is None


SORT = """
#include <stdint.h>
extern uint8_t x[64], y[64];
uint8_t x[64], y[64];
int sort(void);
int sort(void) {
  for (uint32_t i = 0; i < 64; ++i) {
    uint32_t at = i;
    for (; at > 0 && y[at - 1] > x[i]; --at) y[at] = y[at - 1];
    y[at] = x[i];
  }
  return 0;
}
"""
SORT_TABLES = """
extern uint8_t x[64], y[64];
int sort(void);
const harness_span harness_inputs[] = {{x, sizeof x}};
const uint32_t harness_input_count = 1;
const harness_span harness_outputs[] = {{y, sizeof y}};
const uint32_t harness_output_count = 1;
void harness_init(void) {}
int harness_run(void) { return sort(); }
"""
