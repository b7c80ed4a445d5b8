"""The host oracle: loop programs printed as C, built by the host's compiler and run on guarded numpy memory.

Every buffer has memory of its own, filled with NaN or -1 before the run and fenced by guard bytes, so that a kernel that reads
what nobody wrote, or writes outside of its buffer, is found out; so is undefined behaviour where the compiler is GCC. The planner
is not part of this: its tests are elsewhere.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dsopt.backends.mcu.generate import kernels_header, micro_kernels
from dsopt.backends.tir.c_source import c_functions
from dsopt.backends.tir.lower import lower
from dsopt.backends.tir.program import LoopProgram
from dsopt.backends.tir.registry import Lowering
from dsopt.ir import Program
from tests.backends.tir.undefined import CHECKS, HANDLERS, assert_defined, has_checks

FLAGS = [
    "-std=c99",
    "-O1",
    "-Wall",
    "-Wextra",
    "-Wconversion",
    "-Wshadow",
    "-pedantic",
    "-Werror",
    "-ffreestanding",
    "-fPIC",
]
_GUARD = 64

Array = np.ndarray[Any, Any]


def host_compiler() -> str:
    compiler = shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    return compiler


def kernel_source(loops: LoopProgram) -> str:
    functions = c_functions({kernel.name: kernel.func for kernel in loops.kernels})
    prototypes = "".join(function.head(name, "") + ";\n" for name, function in functions.items())
    definitions = "\n".join(function.text(name, "") for name, function in functions.items())
    micro = micro_kernels(loops)
    inner = kernels_header(micro, "this computer") if micro else ""
    return '#include "dsopt_math.h"\n' + inner + prototypes + definitions


def build(loops: LoopProgram, folder: Path) -> ctypes.CDLL:
    (folder / "dsopt_math.h").write_text((files("dsopt.backends.mcu") / "dsopt_math.h").read_text())
    (folder / "kernels.c").write_text(kernel_source(loops))
    (folder / "undefined.c").write_text(HANDLERS)
    library, checked = folder / "kernels.so", has_checks(host_compiler())
    _run_compiler([*FLAGS, *(CHECKS if checked else []), "-c", "kernels.c", "-o", "kernels.o"], folder)
    _run_compiler(["-shared", "-fPIC", "kernels.o", *(["undefined.c"] if checked else []), "-o", str(library)], folder)
    return ctypes.CDLL(str(library))


def _run_compiler(arguments: list[str], folder: Path) -> None:
    done = subprocess.run([host_compiler(), *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:4000]


class _Memory:
    """One buffer between two guards."""

    def __init__(self, size: int, dtype: str) -> None:
        self.raw = np.full(size * np.dtype(dtype).itemsize + 2 * _GUARD, 0xA5, np.uint8)
        self.values: Array = self.raw[_GUARD:-_GUARD].view(dtype)
        if dtype == "float32":
            self.values[...] = np.nan

    def pointer(self, offset: int) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.raw.ctypes.data + _GUARD + offset)

    def check(self, name: str) -> None:
        fences = (self.raw[:_GUARD], self.raw[-_GUARD:])
        assert all((fence == 0xA5).all() for fence in fences), f"a kernel wrote outside of {name}"


def run_on_host(
    program: Program, inputs: tuple[Tensor, ...], folder: Path, steps: int = 1, special: Mapping[str, Lowering] | None = None
) -> tuple[list[Array], dict[str, Array]]:  # fmt: skip
    """Lower, build and run `steps` times. Returns the outputs of the last run, and the states after it."""
    loops = lower(program, special)
    library = build(loops, folder)
    roots = [buffer for buffer in loops.buffers.values() if buffer.alias_of is None]
    memory = {buffer.name: _Memory(buffer.elements, buffer.dtype) for buffer in roots}
    for name, values in loops.constants.items():
        memory[name].values[...] = values.reshape(-1)
    for _ in range(steps):
        for name, value in zip(loops.inputs, inputs, strict=True):
            memory[name].values[...] = value.numpy().reshape(-1)
        for kernel in loops.kernels:
            pointers = [memory[loops.root(name).name].pointer(loops.offset(name)) for name in kernel.arguments]
            getattr(library, kernel.name)(*pointers)
        outputs = [_shown(loops, memory, name) for name in loops.outputs]
        for state in loops.states:
            updated = memory[loops.root(state.update).name].values.copy()
            memory[state.buffer].values[...] = updated
    assert_defined(library, (folder / "kernels.c").read_text())
    for name, block in memory.items():
        block.check(name)
    for name, values in loops.constants.items():
        if loops.buffers[name].kind == "weight":
            np.testing.assert_array_equal(memory[name].values, values.reshape(-1), err_msg=f"{name} was changed")
    states = {
        state.name: memory[state.buffer].values.reshape(loops.buffers[state.buffer].shape) for state in loops.states
    }
    return outputs, states


def _shown(loops: LoopProgram, memory: Mapping[str, _Memory], name: str) -> Array:
    buffer, values = loops.buffers[name], memory[loops.root(name).name].values
    start = loops.offset(name) // values.itemsize
    stored: Array = values[start : start + buffer.elements].reshape(buffer.stored_shape)
    return (np.moveaxis(stored, -1, 1) if buffer.channels_last else stored).copy()


def relative_error(got: Array, want: Array) -> float:
    """max |got - want| / max |want|, infinite where one is no number and the other is."""
    if got.shape != want.shape or str(got.dtype) != str(want.dtype):
        return float("inf")
    if want.dtype != np.float32:
        return float((got != want).any())
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    if same.all():
        return 0.0
    with np.errstate(invalid="ignore"):
        distance = np.where(same, 0.0, np.abs(got.astype(np.float64) - want))
    distance = np.where(np.isfinite(distance), distance, np.inf)
    finite = np.abs(want[np.isfinite(want)])
    return float(distance.max() / max(finite.max(initial=0.0), 1e-30))


def errors_on_host(program: Program, inputs: tuple[Tensor, ...], folder: Path) -> list[float]:
    """Return the relative error of every output against the program's own torch result."""
    with torch.no_grad():
        wanted = program.run(*inputs)
    outputs, _ = run_on_host(program, inputs, folder)
    return [relative_error(got, want.contiguous().numpy()) for got, want in zip(outputs, wanted, strict=True)]
