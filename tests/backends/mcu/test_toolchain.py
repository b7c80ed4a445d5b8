"""Images are built alike everywhere, hold what they need, and are weighed without the firmware around the model."""

from __future__ import annotations

import io
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from dsopt.backends.mcu import toolchain
from dsopt.backends.mcu.toolchain import BuildOptions, Toolchain, find_toolchain, measure_image
from dsopt.errors import ReadError, ToolchainError, UsageError
from dsopt.simulate import firmware, read_image, simulate
from dsopt.simulate.boards import BOARDS, WIDE
from dsopt.target import CORES
from tests.simulate.images import NO_PORTS, needs_gcc, run_image

pytestmark = pytest.mark.mcu

COMPILERS = ["zig", pytest.param("gcc", marks=needs_gcc)]
NEW = ("cortex-m85", "rv32imc", "rv32imafc")  # which the gcc of a distribution may not know
BUILDS = [("zig", core) for core in CORES] + [
    pytest.param("gcc", core, marks=needs_gcc) for core in CORES if core not in NEW
]

MODEL = """
#include "model.h"
const unsigned char weights[1000] = {1, 2, 3};
unsigned char arena[500];
unsigned int counter = 5;
int model_run(void) {
  counter += weights[counter];
  return arena[counter] + (int)counter;
}
"""
HEADER = "extern const unsigned char weights[1000];\nextern unsigned char arena[500];\nextern unsigned int counter;\nint model_run(void);\n"
TABLES = '#include "harness.h"\n#include "model.h"\n' + NO_PORTS + (
    "static unsigned char beside_the_model[4096];\n"
    "int harness_run(void) { beside_the_model[model_run() & 4095] = 1; return 0; }\n"
)  # fmt: skip
SOURCES = {"model.c": MODEL, "model.h": HEADER, "harness_tables.c": TABLES}


def compiler(name: str) -> Toolchain:
    found = toolchain._find_zig() if name == "zig" else toolchain._find_gcc()
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("name", "core"),
    [(name, core) for name, core in BUILDS[: len(CORES)] if core in ("cortex-m0", "cortex-m4", "cortex-m55", *NEW)]
    + [pytest.param("gcc", core, marks=needs_gcc) for core in ("cortex-m0", "cortex-m4", "cortex-m55")],
)
def test_a_model_is_weighed_without_the_firmware(name: str, core: str) -> None:
    sizes = measure_image(compiler(name).compile(SOURCES, core).elf)
    assert {key: sizes.symbols[key] for key in ("weights", "arena", "counter")} == {
        "weights": 1000,
        "arena": 500,
        "counter": 4,
    }
    assert 1000 + sizes.symbols["model_run"] + 4 <= sizes.flash_bytes < 1200
    assert 504 <= sizes.ram_bytes <= 544  # each section ends on 16 bytes
    assert not [symbol for symbol in sizes.symbols if symbol.startswith(("harness", "beside"))]


@pytest.mark.parametrize("name", COMPILERS)
def test_equal_sources_give_equal_bytes_wherever_they_are_built(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compiler(name).compile(SOURCES, "cortex-m4").elf
    (tmp_path / "a longer place").mkdir()
    monkeypatch.setattr(toolchain.tempfile, "tempdir", str(tmp_path / "a longer place"))
    second = compiler(name).compile(dict(reversed(SOURCES.items())), "cortex-m4").elf
    assert first == second
    assert b"dsopt-" not in first
    assert os.fsencode(Path.home()) + b"/" not in first


def test_an_image_keeps_no_debug_sections() -> None:
    elf = ELFFile(io.BytesIO(compiler("zig").compile(SOURCES, "cortex-m0").elf))
    assert [section.name for section in elf.iter_sections() if section.name.startswith((".debug", ".comment"))] == []


@pytest.mark.parametrize(("name", "core"), BUILDS)
def test_the_firmware_compiles_without_a_warning_for_every_core(name: str, core: str) -> None:
    read = read_image(compiler(name).compile(SOURCES, core).elf)
    assert read.memory.ram_origin == (BOARDS[core].memory if core in BOARDS else WIDE).ram_origin


@pytest.mark.parametrize("name", COMPILERS)
def test_sources_may_be_assembler_with_binary_files(name: str) -> None:
    sources = {
        "harness_tables.c": '#include "harness.h"\n' + NO_PORTS
        + "extern const unsigned char table[3];\nint harness_run(void) { return table[0] + table[2] - 12; }\n",
        "table.S": '.section .rodata.table, "a"\n.global table\n.type table, %object\n.size table, 3\ntable: .incbin "model/table.bin"\n',
        "table.bin": bytes([5, 6, 7]),
    }  # fmt: skip
    elf = compiler(name).compile(sources, "cortex-m4").elf
    assert measure_image(elf).symbols["table"] == 3
    assert simulate(elf, "cortex-m4").exit_code == 0


@pytest.mark.parametrize("name", COMPILERS)
@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("int model_run(void) { return 1 }", "expected"),
        ("int model_run(void) { long long x = 1; short y = x; return y; }", "conversion"),
        ("int model_run(void) { int unused; return 0; }", "unused"),
    ],
)
def test_refused_code_is_reported_with_the_first_lines(name: str, line: str, complaint: str) -> None:
    sources = {"model.c": line, "harness_tables.c": TABLES.replace('#include "model.h"', "int model_run(void);")}
    with pytest.raises(ToolchainError) as caught:
        compiler(name).compile(sources, "cortex-m4")
    assert caught.value.code == "DS1021"
    assert "could not compile model.c" in caught.value.what
    assert complaint in caught.value.why
    assert len(caught.value.why.splitlines()) <= 12


@pytest.mark.parametrize("name", COMPILERS)
def test_a_missing_function_is_reported_by_the_linker(name: str) -> None:
    sources = {
        "harness_tables.c": '#include "harness.h"\nint nowhere(void);\n'
        + NO_PORTS
        + "int harness_run(void) { return nowhere(); }\n"
    }
    with pytest.raises(ToolchainError, match=r"could not link the image\n  why: .*nowhere|nowhere"):
        compiler(name).compile(sources, "cortex-m4")


@pytest.mark.parametrize("name", COMPILERS)
def test_initialised_variables_beside_the_model_are_refused(name: str) -> None:
    tables = (
        '#include "harness.h"\n'
        + NO_PORTS
        + "static volatile int state = 3;\nint harness_run(void) { return state; }\n"
    )
    with pytest.raises(ToolchainError, match=r"must not have initialised variables"):
        compiler(name).compile({"harness_tables.c": tables}, "cortex-m4")


@pytest.mark.parametrize("name", COMPILERS)
def test_functions_that_compilers_call_are_there_and_right(name: str) -> None:
    body = r"""
static unsigned char a[64], b[64];
int harness_run(void) {
  for (unsigned from = 0; from < 9; ++from)
    for (unsigned to = 0; to < 9; ++to)
      for (unsigned count = 0; count < 40; ++count) {
        for (unsigned i = 0; i < 64; ++i) { a[i] = (unsigned char)(i * 7 + 1); b[i] = 0; }
        if (memcpy(b + to, a + from, count) != b + to) return 1;
        for (unsigned i = 0; i < 64; ++i) if (b[i] != (i >= to && i < to + count ? a[i - to + from] : 0)) return 2;
        if (memcmp(b + to, a + from, count) != 0) return 3;
        memmove(a + to, a + from, count);
        for (unsigned i = 0; i < count; ++i) if (a[to + i] != (unsigned char)((from + i) * 7 + 1)) return 4;
        memset(b + to, 0x1A5, count);
        for (unsigned i = 0; i < 64; ++i) if (b[i] != (i >= to && i < to + count ? 0xA5 : 0)) return 5;
      }
  b[0] = 1, a[0] = 2;
  return memcmp(a, b, 4) > 0 && memcmp(b, a, 4) < 0 ? 0 : 6;
}
"""
    declarations = "#include <stddef.h>\n" + "".join(
        re.findall(r"^(?:void \*|int )mem\w+\([^;{]*\);\n", firmware.sources()["memory.c"].decode(), re.M)
    )
    sources = {"harness_tables.c": '#include "harness.h"\n' + declarations + NO_PORTS + body}
    for core in ("cortex-m0", "cortex-m4"):
        assert simulate(compiler(name).compile(sources, core).elf, core).exit_code == 0


def test_what_the_model_does_not_use_is_not_in_the_image() -> None:
    assert not [name for name in measure_image(run_image("movs r0, #0; bx lr")).symbols if name.startswith("mem")]


@pytest.mark.parametrize("name", COMPILERS)
@pytest.mark.parametrize("core", ["cortex-m0", "cortex-m4"])
def test_variables_have_their_first_values(name: str, core: str) -> None:
    model = "int given[3] = {5, -6, 7};\nint zero[700];\nshort odd = 258;\n"
    tables = (
        '#include "harness.h"\nextern int given[3], zero[700];\nextern short odd;\n'
        + NO_PORTS
        + """
int harness_run(void) {
  int sum = 0;
  for (int i = 0; i < 700; ++i) sum |= zero[i];
  return sum == 0 && given[0] == 5 && given[1] == -6 && given[2] == 7 && odd == 258 ? 0 : 1;
}
"""
    )
    elf = (
        compiler(name)
        .compile(
            {"model.c": "extern int given[3], zero[700];\nextern short odd;\n" + model, "harness_tables.c": tables},
            core,
        )
        .elf
    )
    assert simulate(elf, core).exit_code == 0


def test_the_stack_is_as_large_as_asked_for() -> None:
    read = read_image(compiler("zig").compile(SOURCES, "cortex-m4", BuildOptions(stack_bytes=2048)).elf)
    assert read.symbols["harness_stack_top"] - read.symbols["harness_stack_limit"] == 2048


def test_the_environment_chooses_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(toolchain.VARIABLE, raising=False)
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: "/opt/" + name)
    monkeypatch.setattr(
        toolchain.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, stdout="13.2.1\n")
    )
    assert find_toolchain("cortex-m4").name == "zig"
    monkeypatch.setenv(toolchain.VARIABLE, "gcc")
    assert find_toolchain("cortex-m4") == Toolchain("gcc", "arm-none-eabi-gcc 13.2.1", ("/opt/arm-none-eabi-gcc",))
    monkeypatch.setenv(toolchain.VARIABLE, "rustc")
    with pytest.raises(UsageError, match=r"DSOPT_TOOLCHAIN='rustc' is no toolchain"):
        find_toolchain("cortex-m4")
    with pytest.raises(UsageError, match=r"unknown core 'z80'"):
        find_toolchain("z80")


def test_riscv_has_a_gcc_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(toolchain.VARIABLE, "gcc")
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: "/opt/" + name)
    started: list[list[str]] = []

    def answer(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        started.append(command)
        return subprocess.CompletedProcess(command, 0, stdout="14.2.0\n", stderr="")

    monkeypatch.setattr(toolchain.subprocess, "run", answer)
    found = find_toolchain("rv32imafc")
    assert found == Toolchain("gcc", "riscv64-unknown-elf-gcc 14.2.0", ("/opt/riscv64-unknown-elf-gcc",))
    assert found._core_flags("rv32imafc") == ("-march=rv32imafc", "-mabi=ilp32f")
    assert found._core_flags("rv32imc") == ("-march=rv32imc", "-mabi=ilp32")


def test_without_a_compiler_the_message_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(toolchain.VARIABLE, raising=False)
    monkeypatch.setattr(toolchain, "_find_zig", lambda: None)
    monkeypatch.setattr(toolchain, "_find_gcc", lambda program: None)
    with pytest.raises(ToolchainError, match=r"DS1020.*\n  do: pip install dsopt\[mcu\] or apt-get install"):
        find_toolchain("cortex-m4")
    with pytest.raises(
        ToolchainError, match=r"no compiler for rv32imc.*\n  do: .* or apt-get install gcc-riscv64-unknown-elf"
    ):
        find_toolchain("rv32imc")


def test_a_compiler_that_cannot_start_or_end_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ToolchainError, match=r"DS1022: /nowhere/gcc cannot be started"):
        Toolchain("gcc", "gcc", ("/nowhere/gcc",)).compile(SOURCES, "cortex-m4")

    def hangs(*_: Any, **__: Any) -> Any:
        raise subprocess.TimeoutExpired("gcc", 1)

    monkeypatch.setattr(toolchain.subprocess, "run", hangs)
    with pytest.raises(ToolchainError, match=r"DS1022: gcc did not finish"):
        Toolchain("gcc", "gcc", ("gcc",)).compile(SOURCES, "cortex-m4")


@needs_gcc
def test_a_gcc_that_does_not_know_the_core_says_so() -> None:
    with pytest.raises(ToolchainError, match=r"DS1025: arm-none-eabi-gcc .* does not know this core") as caught:
        compiler("gcc").compile(SOURCES, "cortex-m99")
    assert "cortex-m99" in caught.value.why


ILLEGAL = {
    "cortex-m0": "sdiv r0, r1, r2",
    "cortex-m3": "smlad r0, r1, r2, r3",
    "cortex-m4": "vmladava.s8 r0, q0, q1",
    "cortex-m85": "fadd.s fa0, fa1, fa2",
    "rv32imc": "fadd.s fa0, fa1, fa2",
    "rv32imafc": "fadd.d fa0, fa1, fa2",
}
LEGAL = {
    "cortex-m4": "smlad r0, r1, r2, r3",
    "cortex-m55": "vmladava.s8 r0, q0, q1",
    "cortex-m85": "vmladava.s8 r0, q0, q1",
    "rv32imc": "mul a0, a1, a2",
    "rv32imafc": "fmadd.s fa0, fa1, fa2, fa3",
}


def assembled(core: str, line: str) -> bytes:
    run = f'int harness_run(void) {{ __asm__ volatile("{line}"); return 0; }}\n'
    return compiler("zig").compile({"harness_tables.c": '#include "harness.h"\n' + NO_PORTS + run}, core).elf


@pytest.mark.parametrize(("core", "line"), ILLEGAL.items())
def test_the_assembler_knows_what_a_core_has_not(core: str, line: str) -> None:
    with pytest.raises(ToolchainError, match=r"DS1021.*could not compile"):
        assembled(core, line)


@pytest.mark.parametrize(("core", "line"), LEGAL.items())
def test_the_assembler_knows_what_a_core_has(core: str, line: str) -> None:
    assert read_image(assembled(core, line)).family == CORES[core].family


def test_a_full_disk_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(toolchain.Path, "write_bytes", full)
    with pytest.raises(ToolchainError, match=r"DS1024.*\n  where: .*\n  why: No space left on device\n  do: free some"):
        compiler("zig").compile(SOURCES, "cortex-m4")


@pytest.mark.parametrize("name", COMPILERS)
def test_layers_keep_their_names_even_where_they_are_equal_or_called_once(name: str) -> None:
    layer = """static __attribute__((noinline)) void layer_%d(const float *x, float *y, int n) {
  for (int i = 0; i < n; ++i) y[i] = x[i] + 1.0f;
}
"""
    run = "int model_run(void) { layer_0(x, x + 4, 4); layer_1(x + 4, x, 4); return 0; }\n"
    header = "extern float x[8];\nint model_run(void);\n"
    sources = {
        "model.c": header + "float x[8];\n" + layer % 0 + layer % 1 + run,
        "harness_tables.c": '#include "harness.h"\n'
        + header
        + NO_PORTS
        + "int harness_run(void) { return model_run(); }\n",
    }
    elf = compiler(name).compile(sources, "cortex-m4").elf
    done = simulate(elf, "cortex-m4", layers=["layer_0", "layer_1"], simulator="unicorn")
    assert done.layers["layer_0"] == done.layers["layer_1"]
    assert done.layers["layer_0"].instructions > 8
    assert measure_image(elf).symbols["layer_0"] == measure_image(elf).symbols["layer_1"]


def test_a_home_that_cannot_be_written_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert toolchain._zig_cache(tmp_path) == tmp_path / "zig-cache"


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"text"])
def test_what_is_no_image_is_not_weighed(content: bytes) -> None:
    with pytest.raises(ReadError, match=r"DS1003"):
        measure_image(content)
