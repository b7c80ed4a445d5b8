"""The text of kernels: readable by three compilers, and nothing of TVM in it."""

from __future__ import annotations

import tvm_ffi

from dsopt.backends.cuda.kernels import PRELUDE
from dsopt.backends.tir.builder import KernelBuilder
from dsopt.backends.tir.cuda_source import bind_grid, cuda_definition
from dsopt.backends.tir.program import Buffer
from dsopt.backends.tir.tvm_adapter import tirx


def _text() -> str:
    k = KernelBuilder("scale")
    x = k.read("x", Buffer("x", (8, 8), "float32", "input"))
    y = k.write("y", Buffer("y", (8, 8), "float32", "output"))
    with k.grid(i=8, j=8) as (i, j):
        k.store(y, tirx.exp(x[j, i]) * 0.1, i, j)
    return cuda_definition("scale", bind_grid(k.build(), 32))


def test_a_kernel_takes_raw_pointers_named_after_its_buffers() -> None:
    first = _text().splitlines()[0]
    signature = "scale(float* __restrict__ x, float* __restrict__ y)"
    assert first == f'extern "C" __global__ void __launch_bounds__(32) {signature} {{'


def test_functions_are_the_accurate_ones_and_constants_are_exact() -> None:
    text = _text()
    assert "expf(" in text
    assert "__expf" not in text  # the fast one is off by up to 2^-21 for arguments of the usual size
    assert "0x1.99999" in text  # 0.1 as a hexadecimal float


def test_the_file_needs_no_header_of_tvm_or_cuda() -> None:
    text = PRELUDE + _text()
    assert "tvm" not in text.lower()
    assert [line for line in text.splitlines() if line.startswith("#include")] == ["#include <stdint.h>"]


def test_the_same_kernel_is_the_same_text() -> None:
    assert _text() == _text()


def test_tvm_compiles_for_others_afterwards_as_it_did_before() -> None:
    hook = "tvm_callback_cuda_compile"
    calls: list[str] = []
    previous = tvm_ffi.get_global_func(hook, allow_missing=True)
    tvm_ffi.register_global_func(hook, calls.append, override=True)
    try:
        _text()
        assert calls == []
        tvm_ffi.get_global_func(hook)("source")
        assert calls == ["source"]
    finally:
        if previous is not None:
            tvm_ffi.register_global_func(hook, previous, override=True)
