"""The generated C on a desk: built by the host's compiler as a shared library, called through the API of model.h."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dsopt.backends.mcu.generate import generate
from dsopt.backends.mcu.pipeline import pipeline
from dsopt.backends.mcu.place import Placement, place
from dsopt.backends.tir.lower import lower
from dsopt.ir import Program
from dsopt.passes.base import PassManager
from tests.backends.tir.host_runner import host_compiler

WARNINGS = (
    "-Wall",
    "-Wextra",
    "-Wconversion",
    "-Wstrict-prototypes",
    "-Wmissing-prototypes",
    "-Wshadow",
    "-pedantic",
    "-Werror",
)
Array = np.ndarray[Any, Any]


def prepared(program: Program) -> Program:
    """Run the mcu passes."""
    return PassManager(pipeline()).run(program)[0]


def placed(program: Program) -> Placement:
    return place(lower(program))


def sources(program: Program, name: str = "model") -> Mapping[str, str]:
    return generate(program, placed(program), name, "mcu:cortex-m4", "0.0.0", 0).files


def write(folder: Path, files: Mapping[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def compile_c(folder: Path, *arguments: str, standard: str = "c99") -> subprocess.CompletedProcess[str]:
    command = [host_compiler(), f"-std={standard}", "-O1", *WARNINGS, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


class DeskModel:
    """A generated model as a library, with its inputs, outputs and states as arrays."""

    def __init__(self, program: Program, folder: Path) -> None:
        self.program = program
        write(folder, sources(program))
        done = compile_c(folder, "-ffreestanding", "-shared", "-fPIC", "model.c", "weights.c", "-o", "model.so")
        assert done.returncode == 0, done.stderr
        self.library = ctypes.CDLL(str(folder / "model.so"))
        for name in ("model_input", "model_output", "model_state"):
            getattr(self.library, name).restype = ctypes.c_void_p
        self.library.model_init()

    def run(self, *inputs: Array) -> list[Array]:
        for number, value in enumerate(inputs):
            ctypes.memmove(self.library.model_input(number), np.ascontiguousarray(value).ctypes.data, value.nbytes)
        self.library.model_run()
        return [self._read("model_output", number, node) for number, node in enumerate(self.program.outputs)]

    def state(self, number: int) -> Array:
        return self._read("model_state", number, self.program.states[number].placeholder)

    def reset(self) -> None:
        self.library.model_reset()

    def _read(self, function: str, number: int, node: Any) -> Array:
        value = node.meta["val"]
        dtype = np.dtype(str(value.dtype).removeprefix("torch."))
        count = int(np.prod(value.shape)) * dtype.itemsize
        address = getattr(self.library, function)(number)
        return np.frombuffer(ctypes.string_at(address, count), dtype).reshape(tuple(value.shape)).copy()
