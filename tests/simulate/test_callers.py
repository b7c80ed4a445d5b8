"""Where an emulator was stopped is named with the functions that led there, one of which is the layer."""

from __future__ import annotations

import pytest

from dsopt.errors import CheckError
from dsopt.simulate import read_image, simulate
from dsopt.simulate.callers import callers
from tests.simulate.images import NO_PORTS, image, needs_gcc, needs_qemu

pytestmark = pytest.mark.mcu

HANGING = """
#include <stdint.h>
extern volatile uint32_t wanted;
volatile uint32_t wanted;
uint32_t dsopt_wait(uint32_t value);
uint32_t helper(uint32_t value);
void stem_conv(void);
void head_linear(void);
void net_run(void);
__attribute__((noinline)) uint32_t dsopt_wait(uint32_t value) { while (wanted != value) {} return wanted; }
__attribute__((noinline)) uint32_t helper(uint32_t value) { return dsopt_wait(value + 1) + wanted; }
__attribute__((noinline)) void stem_conv(void) { wanted = 3; }
__attribute__((noinline)) void head_linear(void) { wanted = helper(wanted) + 1; }
__attribute__((noinline)) void net_run(void) { stem_conv(); head_linear(); wanted = 0; }
"""
TABLES = "void net_run(void);\n" + NO_PORTS + "int harness_run(void) { net_run(); return 0; }\n"
CALLED = "called by helper, head_linear, net_run"


@pytest.mark.parametrize(
    ("core", "simulator", "compiler"),
    [
        ("cortex-m0plus", "unicorn", "zig"),
        ("cortex-m4", "unicorn", "zig"),
        pytest.param("cortex-m4", "unicorn", "gcc", marks=needs_gcc),
        pytest.param("cortex-m4", "qemu", "zig", marks=needs_qemu),
        pytest.param("cortex-m55", "qemu", "zig", marks=needs_qemu),
    ],
)
def test_a_hang_is_named_by_its_layer(core: str, simulator: str, compiler: str) -> None:
    with pytest.raises(CheckError) as caught:
        simulate(image(HANGING, TABLES, core, compiler), core, simulator=simulator, seconds=0.5)
    assert (caught.value.code, caught.value.exit_code) == ("DS1002", 1)
    assert caught.value.where.startswith("it was in dsopt_wait (0x")
    assert caught.value.where.endswith(CALLED)


@pytest.mark.parametrize("core", ["rv32imc", "rv32imafc"])
def test_a_hang_on_riscv_is_named_by_its_layer(core: str) -> None:
    with pytest.raises(CheckError, match=rf"DS1002.*\n  where: it was in dsopt_wait .*{CALLED}"):
        simulate(image(HANGING, TABLES, core), core, seconds=0.5)


def test_a_fault_is_named_by_its_layer() -> None:
    model = HANGING.replace("while (wanted != value) {}", "wanted = *(volatile uint32_t *)(0x50000000u + value);")
    with pytest.raises(
        CheckError, match=rf"DS1001: the image faulted in dsopt_wait .*\n  where: 0 runs done, {CALLED}"
    ):
        simulate(image(model, TABLES), "cortex-m4", simulator="unicorn")


def test_words_that_are_no_return_addresses_are_passed_over() -> None:
    read = read_image(image(HANGING, TABLES))
    start = read.symbols["head_linear"]
    words = [0, 1, start, start | 1, 0xFFFF_FFFF, read.memory.ram_origin | 1, start + (1 << 28) | 1]
    stack = b"".join(word.to_bytes(4, "little") for word in words)
    assert callers(read, read.symbols["dsopt_wait"], 0, stack + b"\1") == ("dsopt_wait",)
