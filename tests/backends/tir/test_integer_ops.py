"""Integer operators through C built by the host's compiler: every bit as the NumPy references give it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dsopt
from dsopt.backends.tir.builder import KernelBuilder
from dsopt.backends.tir.lower import blockers, lower
from dsopt.backends.tir.program import Buffer, Kernel, LoopProgram
from dsopt.backends.tir.tvm_adapter import constant, tirx
from dsopt.ir import Program
from tests.backends.tir.case import Cases
from tests.backends.tir.host_runner import build, host_compiler, kernel_source, run_on_host
from tests.backends.tir.integer_cases import INTEGER_FAMILIES
from tests.backends.tir.integer_modules import Apply, Input, Settings, conv, layer_norm, linear, tensor
from tests.backends.tir.undefined import assert_defined, has_checks

Capture = Callable[..., Program]
q = torch.ops.dsopt


@pytest.mark.parametrize("name", INTEGER_FAMILIES)
def test_kernels_give_the_bits_of_the_reference(name: str, tmp_path: Path) -> None:
    family = INTEGER_FAMILIES[name]
    program = dsopt.capture(Cases(family.cases).eval(), family.inputs)
    assert blockers(program) == ()
    with torch.no_grad():
        wanted = program.run(*family.inputs)
    outputs, _ = run_on_host(program, family.inputs, tmp_path)
    for case, got, want in zip(family.cases, outputs, wanted, strict=True):
        assert (str(want.dtype), tuple(want.shape)) == (f"torch.{got.dtype}", got.shape), case
        np.testing.assert_array_equal(got, want.numpy(), err_msg=case)


# ---- what is written ----


def loops_of(model: nn.Module, *inputs: Tensor) -> LoopProgram:
    return lower(dsopt.capture(model.eval(), inputs))


def test_layers_are_named_after_what_they_do() -> None:
    model = nn.Sequential(conv((4, 6, 3, 3)), layer_norm(7), linear(3, 7))
    loops = loops_of(model, tensor(0, 2, 6, 5, 9))
    assert [kernel.name for kernel in loops.kernels] == ["layer_0_conv", "layer_1_norm", "layer_2_linear"]
    assert [kernel.multiply_adds for kernel in loops.kernels] == [
        2 * 4 * 3 * 7 * 54,
        2 * 2 * 4 * 3 * 7,
        2 * 4 * 3 * 3 * 7,
    ]


def _requantizing(shifts: list[int], wide: bool = False) -> str:
    count = len(shifts)
    multipliers = np.arange(count, dtype=np.int32) + (1 << (23 if wide else 30))
    model = Apply("q_linear", Input(0), np.ones((count, 3), np.int8), None, multipliers,
                  np.array(shifts, np.int32), None, 0, [count, 3], 8, 0, 0, -128, 127, 8, wide)  # fmt: skip
    return kernel_source(loops_of(model, tensor(0, 2, 3)))


def test_known_shifts_are_written_in_the_form_that_they_need() -> None:
    high = "const int32_t high = (int32_t)(product >> 32);"
    assert high in _requantizing([33, 62])
    assert "(high + (1 << (by - 1))) >> by" in _requantizing([33, 62])
    assert high in _requantizing([40, 40])
    assert "(high + 128) >> 8" in _requantizing([40, 40])
    assert "(product + INT64_C(2147483648)) >> 32" in _requantizing([32, 32])
    for source in (_requantizing([32, 40]), _requantizing([40, 41], wide=True)):
        assert "const int64_t scaled = (product + (INT64_C(1) << ((int64_t)by - 1))) >> by;" in source


def test_a_result_is_written_over_an_operand_that_nobody_reads_again(capture_function: Capture) -> None:
    def function(x: Tensor) -> Tensor:
        a = q.q_rescale(x, 0, 3, 1, 0, -128, 127, 8)
        b = q.q_rescale(a, 1, 5, 2, 1, -128, 127, 8)
        wide = q.q_add(b, b, 0, 0, 1, 1, 0, 0, -32768, 32767, 16)
        return q.q_mul(wide, wide, 0, 0, 1 << 30, 38, 0, -32768, 32767, 16)

    kernels = lower(capture_function(function, tensor(0, 5))).kernels
    assert [kernel.outputs for kernel in kernels] == [("net_rescale",), ("net_rescale",), ("net_add",), ("net_add",)]
    assert [kernel.inputs for kernel in kernels] == [("x",), (), ("net_rescale", "net_rescale"), ()]


def test_a_table_is_not_written_over(capture_function: Capture) -> None:
    table = tensor(1, 256)
    program = capture_function(
        lambda x: q.q_lookup(y := q.q_rescale(x, 0, 1, 0, 1, -128, 127, 8), y, 0, 0, -128, 127, 8), table
    )
    assert [kernel.outputs for kernel in lower(program).kernels] == [("net_rescale",), ("net_lookup",)]


# ---- what is refused ----

LINEAR = [None, 0, [2, 3], 8, 0, 0, -128, 127, 8, False]
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "float": (lambda: Apply("q_rescale", Input(1), 0, 1, 0, 0, -128, 127, 8), "an integer operator on float32"),
    "shift": (
        lambda: Apply("q_linear", Input(0), np.ones((2, 3), np.int8), None, np.ones(2, np.int32), np.array([40, 63], np.int32), *LINEAR),
        "shifts from 40 to 63",
    ),
    "width": (
        lambda: Apply("q_linear", Input(0), np.ones((2, 3), np.int8), None, np.ones(2, np.int32), np.full(2, 40, np.int32), None, 0,
                      [2, 3], 6, *LINEAR[4:]),
        "weights of 6 bits",
    ),
    "multiplier": (
        lambda: Apply("q_linear", Input(0), np.ones((2, 3), np.int8), None, np.full(2, 1 << 24, np.int32), np.full(2, 40, np.int32),
                      *LINEAR[:-1], True),
        "a requantisation of int64 with a multiplier of more than 24 bits",
    ),
    "epsilon": (lambda: layer_norm(3, epsilon=0), "epsilon 0"),
    "int32": (lambda: linear(2, 3, Settings(x_zero=0), x=Input(2)), "a layer on int32"),
    "product": (lambda: Apply("q_mul", Input(2), Input(2), 0, 0, 1 << 30, 40, 0, -128, 127, 8), "an integer product of int32"),
    "factor": (lambda: Apply("q_add", Input(2), Input(2), 0, 0, 1 << 40, 1, 9, 0, -128, 127, 8), "more than 64 bits"),
    "far": (lambda: Apply("q_rescale", Input(0), 0, 1, 63, 0, -128, 127, 8), "a shift of 63"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_undefined_is_refused(name: str) -> None:
    make, why = REFUSED[name]
    inputs = (tensor(0, 2, 3), torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.int32))
    found = blockers(dsopt.capture(Cases({name: make()}).eval(), inputs))
    assert len(found) == 1
    assert why in str(found[0])


# ---- the judge ----


def test_undefined_behaviour_is_found_and_named(tmp_path: Path) -> None:
    if not has_checks(host_compiler()):
        pytest.skip("the compiler has no checks of undefined behaviour")
    k = KernelBuilder("kernel")
    x, y = (k.read(name, Buffer(name, (4,), "int32", "input")) for name in "xy")
    z = k.write("z", Buffer("z", (4,), "int32", "temp"))
    with k.grid(i=4) as (i,):
        k.store(z, x[i] * y[i] + tirx.shift_left(constant(1, "int32"), y[i]), i)
    kernel = Kernel("kernel", k.build(), ("x", "y"), ("z",), (), "", "", "")
    loops = LoopProgram((kernel,), {}, {}, (), (), (), {})
    library = build(loops, tmp_path)

    def run(first: int, second: int) -> Any:
        arrays = [np.full(4, value, np.int32) for value in (first, second, 0)]
        library.kernel(*(each.ctypes.data_as(ctypes.c_void_p) for each in arrays))
        return arrays[2]

    assert run(3, 5).tolist() == [47] * 4
    assert_defined(library, kernel_source(loops))
    run(1 << 30, 4)
    with pytest.raises(AssertionError, match=r"mul_overflow in line \d+, 4 times in all: z\[i\] = x\[i\] \* y\[i\]"):
        assert_defined(library, kernel_source(loops))
