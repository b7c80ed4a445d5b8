"""An image computes what NumPy computes; whatever goes wrong inside of it is one sentence for the caller."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsopt import simulate as package
from dsopt.errors import CheckError, InputError, ReadError, ToolchainError, UsageError
from dsopt.simulate import TracePoint, choose_simulator, mailbox, qemu, simulate
from dsopt.simulate import unicorn as unicorn_runner
from tests.simulate.images import NO_PORTS, ONE_PORT_EACH, image, needs_gcc, needs_qemu, run_image

pytestmark = pytest.mark.mcu

SIMULATORS = ["unicorn", pytest.param("qemu", marks=needs_qemu)]
F32 = np.float32

POLYNOMIAL = """
extern float x[8], y[8];
float x[8], y[8];
float square[8];
void layer_square(void);
void layer_sum(void);
void run(void);
__attribute__((noinline)) void layer_square(void) { for (int i = 0; i < 8; ++i) square[i] = x[i] * x[i]; }
__attribute__((noinline)) void layer_sum(void) { for (int i = 0; i < 8; ++i) y[i] = square[i] / 3.0f + x[i]; }
void run(void) { layer_square(); layer_sum(); }
"""
POLYNOMIAL_TABLES = (
    "extern float x[8], y[8];\nvoid run(void);\n" + ONE_PORT_EACH + "int harness_run(void) { run(); return 0; }\n"
)


def polynomial(core: str = "cortex-m4", compiler: str = "") -> bytes:
    return image(POLYNOMIAL, POLYNOMIAL_TABLES, core, compiler)


def samples(count: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=(count, 8)).astype(F32)


@pytest.mark.parametrize(
    ("core", "compiler"),
    [
        ("cortex-m0", "zig"),
        ("cortex-m3", "zig"),
        ("cortex-m4", "zig"),
        ("cortex-m7", "zig"),
        ("cortex-m33", "zig"),
        ("rv32imc", "zig"),
        ("rv32imafc", "zig"),
        pytest.param("cortex-m0plus", "gcc", marks=needs_gcc),
        pytest.param("cortex-m4", "gcc", marks=needs_gcc),
    ],
)
def test_every_core_computes_in_float32_as_numpy_does(core: str, compiler: str) -> None:
    values = samples(3)
    done = simulate(polynomial(core, compiler), core, runs=[[row.tobytes()] for row in values])
    got = np.array([np.frombuffer(output[0], F32) for output in done.outputs])
    want = values.astype(np.float64) ** 2 / 3 + values
    np.testing.assert_allclose(got, want, rtol=3e-7, atol=1e-7)


@pytest.mark.parametrize(("hard_core", "soft_core"), [("cortex-m4", "cortex-m3"), ("rv32imafc", "rv32imc")])
def test_hard_float_code_uses_the_floating_point_unit(hard_core: str, soft_core: str) -> None:
    cheap = simulate(polynomial(hard_core), hard_core, runs=[[bytes(32)]])
    soft = simulate(polynomial(soft_core), soft_core, runs=[[bytes(32)]])
    assert cheap.instructions * 4 < soft.instructions
    assert set(cheap.functions) <= {"run", "layer_square", "layer_sum", "harness_run"}


def test_an_image_for_another_family_is_refused() -> None:
    for built, core in (("rv32imc", "cortex-m0"), ("cortex-m4", "rv32imc")):
        with pytest.raises(ReadError, match=r"DS1003: the image is for (riscv|arm), and a .* is (riscv|arm)"):
            simulate(polynomial(built), core, runs=[[bytes(32)]])


def test_a_core_that_nothing_emulates_says_so() -> None:
    with pytest.raises(ToolchainError, match="DS1014: nothing emulates a cortex-m85"):
        choose_simulator("cortex-m85")


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_one_emulator_run_serves_many_inferences_in_order(simulator: str) -> None:
    values = samples(300)
    done = simulate(polynomial(), "cortex-m4", runs=[[row.tobytes()] for row in values], simulator=simulator)
    assert len(done.outputs) == len(done.run_instructions) == 300
    got = np.array([np.frombuffer(output[0], F32) for output in done.outputs])
    np.testing.assert_allclose(got, values**2 / F32(3) + values, rtol=3e-7, atol=1e-7)


def test_more_runs_than_a_mailbox_holds_are_served_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [[row.tobytes()] for row in samples(10)]
    whole = simulate(polynomial(), "cortex-m4", runs=rows, layers=["layer_sum"])
    monkeypatch.setattr(package.mailboxes, "runs_that_fit", lambda image: 3)
    assert simulate(polynomial(), "cortex-m4", runs=rows, layers=["layer_sum"]) == whole


def test_a_simulation_repeats_to_the_bit() -> None:
    rows = [[row.tobytes()] for row in samples(4)]
    assert simulate(polynomial(), "cortex-m4", runs=rows) == simulate(polynomial(), "cortex-m4", runs=rows)


def test_traces_are_what_layers_leave() -> None:
    values = samples(1)[0]
    points = [TracePoint("layer_square", "square", 0, 32), TracePoint("layer_sum", "y", 8, 8)]
    done = simulate(polynomial(), "cortex-m4", runs=[[values.tobytes()]], layers=["layer_square"], traces=points)
    assert np.array_equal(np.frombuffer(done.traces["layer_square"], F32), values * values)
    assert done.traces["layer_sum"] == done.outputs[0][0][8:16]


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("stack_bytes", [0, 8, 1000, 20_000])
def test_the_stack_is_measured_from_the_entry_of_the_run(stack_bytes: int, simulator: str) -> None:
    lines = "mov r3, sp; ldr r2, =%d; subs r3, r2; mov r2, sp; 1: cmp r2, r3; beq 2f; subs r2, #4; str r0, [r2]; b 1b; 2: movs r0, #0"
    elf = run_image(lines % stack_bytes + "; bx lr; .ltorg")
    assert simulate(elf, "cortex-m4", simulator=simulator, runs=[()] * 2).stack_bytes == stack_bytes


FAULTS = {
    "reads nothing's memory": "ldr r0, =0x50000000; ldr r0, [r0]; bx lr; .ltorg",
    "executes no instruction": "udf #1",
}


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_names_the_function(what: str, simulator: str) -> None:
    with pytest.raises(CheckError, match=r"DS1001: the image faulted in harness_run") as caught:
        simulate(run_image(FAULTS[what]), "cortex-m4", simulator=simulator, seconds=20)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("lines", ["ldr r0, =0x20000001; bx r0; .ltorg", "1: push {r0-r7}; b 1b"])
def test_running_data_and_running_out_of_stack_are_faults(lines: str) -> None:
    with pytest.raises(CheckError, match=r"DS1001: the image faulted"):
        simulate(run_image(lines), "cortex-m4", simulator="unicorn", seconds=20)


@needs_qemu
@pytest.mark.parametrize("core", ["cortex-m4", "cortex-m33"])
def test_a_board_that_has_no_fault_below_its_stack_still_says_that_it_ran_out(core: str) -> None:
    lines = "mov r3, sp; ldr r2, =harness_stack_limit; subs r2, #64; 1: subs r3, #4; str r0, [r3]; cmp r3, r2; bne 1b; movs r0, #0"
    lines += "; bx lr; .ltorg"
    with pytest.raises(CheckError, match=r"DS1001: the image faulted"):
        simulate(run_image(lines, core), core, simulator="qemu", seconds=20)


def test_code_and_constants_cannot_be_overwritten() -> None:
    with pytest.raises(CheckError, match=r"faulted in harness_run"):
        simulate(run_image("ldr r1, =harness_run; str r0, [r1]; bx lr; .ltorg"), "cortex-m4", simulator="unicorn")


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_float_code_on_a_core_without_the_unit_is_a_fault(simulator: str) -> None:
    with pytest.raises(CheckError, match=r"DS1001.*faulted in"):
        simulate(polynomial("cortex-m4"), "cortex-m3", runs=[[bytes(32)]], simulator=simulator, seconds=20)


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_an_endless_loop_is_stopped_and_named(simulator: str) -> None:
    with pytest.raises(CheckError) as caught:
        simulate(run_image("1: b 1b"), "cortex-m4", simulator=simulator, seconds=1)
    assert caught.value.code == "DS1002"
    assert "harness_run" in caught.value.where


def test_an_endless_loop_is_stopped_without_a_compiled_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unicorn_runner, "block_counter_library", lambda: None)
    with pytest.raises(CheckError, match=r"DS1002"):
        simulate(run_image("1: b 1b"), "cortex-m4", seconds=1, simulator="unicorn")


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_a_code_of_the_model_ends_the_runs(simulator: str) -> None:
    tables = NO_PORTS + "int harness_run(void) { static int runs; return ++runs == 3 ? 7 : 0; }\n"
    done = simulate(image("typedef int nothing;\n", tables), "cortex-m4", runs=[()] * 5, simulator=simulator)
    assert (done.exit_code, len(done.outputs), len(done.run_instructions)) == (7, 2, 2)


def test_inputs_of_other_lengths_are_refused() -> None:
    with pytest.raises(InputError, match=r"DS1005: run 1 has inputs of \[31\] bytes, and the image takes \[32\]"):
        simulate(polynomial(), "cortex-m4", runs=[[bytes(32)], [bytes(31)]])


def test_inputs_larger_than_the_mailbox_are_refused() -> None:
    tables = NO_PORTS.replace("{{0, 0}}", "{{0, 1u << 28}}", 1).replace("input_count = 0", "input_count = 1")
    elf = image("typedef int nothing;\n", tables + "int harness_run(void) { return 0; }\n")
    with pytest.raises(InputError, match=r"DS1006"):
        simulate(elf, "cortex-m4")


def test_an_unknown_layer_is_named() -> None:
    with pytest.raises(ReadError, match=r"DS1003: the image has no function 'layer_9'"):
        simulate(polynomial(), "cortex-m4", layers=["layer_9"], runs=[[bytes(32)]])


def test_a_trace_outside_of_ram_is_refused() -> None:
    with pytest.raises(ReadError, match=r"layer_sum leaves no 4 bytes in RAM at y\+16777216"):
        simulate(polynomial(), "cortex-m4", traces=[TracePoint("layer_sum", "y", 1 << 24, 4)], runs=[[bytes(32)]])


@pytest.mark.parametrize(
    ("core", "simulator", "message"),
    [
        ("cortex-m5", None, "unknown core 'cortex-m5'"),
        ("cortex-m4", "bochs", "unknown simulator 'bochs'"),
        ("cortex-m0", "qemu", "qemu does not emulate a cortex-m0"),
        ("cortex-m55", "unicorn", "unicorn does not emulate a cortex-m55"),
    ],
)
def test_unknown_names_are_answered_with_the_known_ones(core: str, simulator: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        choose_simulator(core, simulator)
    assert caught.value.fix


def test_without_a_simulator_the_message_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package.shutil, "which", lambda name: None)
    with pytest.raises(ToolchainError, match=r"apt-get install qemu-system-arm"):
        choose_simulator("cortex-m55")
    monkeypatch.setattr(package.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ToolchainError, match=r"pip install dsopt\[mcu\] or apt-get install"):
        choose_simulator("cortex-m4")
    with pytest.raises(ToolchainError, match=r"DS1012"):
        qemu.emulate(b"", _read(), package.board_of("cortex-m4", _read().memory), b"", 1)  # type: ignore[arg-type]


def _read() -> package.Image:
    return package.read_image(polynomial())


def test_a_child_that_dies_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*_: Any, **__: Any) -> Any:
        return subprocess.CompletedProcess([], -11, b"", b"noise\nout of memory\n")

    monkeypatch.setattr(unicorn_runner.subprocess, "run", dies)
    with pytest.raises(CheckError, match=r"DS1004: the emulator was ended by signal 11\n  why: out of memory"):
        simulate(polynomial(), "cortex-m4", runs=[[bytes(32)]], simulator="unicorn")


def test_a_child_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = tmp_path / "python"
    hangs.write_text("#!/bin/sh\nexec sleep 60\n")
    hangs.chmod(0o700)
    monkeypatch.setattr(unicorn_runner, "_GRACE_SECONDS", 0.2)
    monkeypatch.setattr(unicorn_runner.sys, "executable", str(hangs))
    with pytest.raises(CheckError, match=r"DS1004: the emulator did not stop within 0\.[12]\d* s"):
        simulate(polynomial(), "cortex-m4", runs=[[bytes(32)]], simulator="unicorn", seconds=0.2)


def test_no_more_processes_and_no_more_space_are_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(unicorn_runner.subprocess, "run", fails)
    monkeypatch.setattr(unicorn_runner, "block_counter_library", lambda: None)
    with pytest.raises(CheckError, match=r"DS1004: the emulator cannot be started\n  why: Resource temporarily"):
        simulate(polynomial(), "cortex-m4", runs=[[bytes(32)]], simulator="unicorn")
    monkeypatch.setattr(qemu.shutil, "which", lambda name: "/bin/true")
    monkeypatch.setattr(qemu.Path, "write_bytes", fails)
    with pytest.raises(ToolchainError, match=r"DS1011: QEMU cannot be run"):
        simulate(polynomial(), "cortex-m4", runs=[[bytes(32)]], simulator="qemu")


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_subnormal_numbers_are_kept(simulator: str) -> None:
    tiny = np.full(8, 1e-40, F32)
    done = simulate(polynomial(), "cortex-m4", runs=[[tiny.tobytes()]], simulator=simulator)
    assert done.outputs[0][0] == tiny.tobytes()


def test_an_image_that_lies_about_its_runs_gives_no_more_than_there_are() -> None:
    read = _read()
    content = bytearray(mailbox.pack(read, [[bytes(32)]]))
    content[36:40] = (1 << 30).to_bytes(4, "little")
    assert len(mailbox.unpack(read, bytes(content)).outputs) == 1


def test_a_large_model_runs_on_the_wide_map() -> None:
    model = "extern const unsigned char weights[5 << 20];\nconst unsigned char weights[5 << 20] = {7};\n"
    tables = (
        "extern const unsigned char weights[5 << 20];\n" + NO_PORTS
        + "int harness_run(void) { return weights[0] - 7 + weights[(5 << 20) - 1]; }\n"
    )  # fmt: skip
    elf = image(model, tables)
    assert simulate(elf, "cortex-m4", simulator="unicorn").exit_code == 0


@needs_qemu
def test_an_image_larger_than_the_board_is_refused_by_qemu() -> None:
    tables = NO_PORTS + "extern const char weights[5 << 20];\nint harness_run(void) { return weights[7]; }\n"
    elf = image("extern const char weights[5 << 20];\nconst char weights[5 << 20] = {7};\n", tables)
    with pytest.raises(UsageError, match=r"QEMU has no cortex-m4 board with as much memory"):
        simulate(elf, "cortex-m4", simulator="qemu")
