"""Small images for the tests of simulators: C or assembler around which the firmware is compiled."""

from __future__ import annotations

import functools
import shutil

import pytest

from dsopt.backends.mcu import toolchain
from dsopt.backends.mcu.toolchain import BuildOptions, find_toolchain
from dsopt.simulate.qemu import PROGRAM
from dsopt.target import CORES

needs_qemu = pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"{PROGRAM} is not installed")
needs_gcc = pytest.mark.skipif(shutil.which(toolchain.GCC) is None, reason=f"{toolchain.GCC} is not installed")

NO_PORTS = """
const harness_span harness_inputs[] = {{0, 0}};
const uint32_t harness_input_count = 0;
const harness_span harness_outputs[] = {{0, 0}};
const uint32_t harness_output_count = 0;
void harness_init(void) {}
"""

ONE_PORT_EACH = """
const harness_span harness_inputs[] = {{x, sizeof x}};
const uint32_t harness_input_count = 1;
const harness_span harness_outputs[] = {{y, sizeof y}};
const uint32_t harness_output_count = 1;
void harness_init(void) {}
"""


def assembler(name: str, lines: str, family: str = "arm") -> str:
    """Return a C function that is exactly these instructions, separated by semicolons."""
    syntax = ".syntax unified; " if family == "arm" else ""
    text = "".join(f'"{line.strip()}\\n"' for line in (syntax + lines).split(";"))
    return f"__attribute__((naked, noinline, used)) int {name}(void) {{ __asm__ volatile({text}); }}\n"


@functools.cache
def image(model: str, tables: str, core: str = "cortex-m4", compiler: str = "", optimize: str = "2") -> bytes:
    """Compile model.c and what follows the #include lines of harness_tables.c. compiler: "zig", "gcc" or the default."""
    chosen = {"": lambda: find_toolchain(core), "zig": toolchain._find_zig, "gcc": toolchain._find_gcc}[compiler]()
    assert chosen is not None
    sources = {"model.c": model, "harness_tables.c": '#include "harness.h"\n' + tables}
    return chosen.compile(sources, core, BuildOptions(optimize=optimize)).elf


def run_image(lines: str, core: str = "cortex-m4", compiler: str = "") -> bytes:
    """Return an image without inputs and outputs, of which one run is these instructions."""
    return image(
        "typedef int nothing;\n", NO_PORTS + assembler("harness_run", lines, CORES[core].family), core, compiler
    )
