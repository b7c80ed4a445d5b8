"""The kernels of a program as one CUDA source file; loop nests that are equal but for their names become one kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dsopt.backends.cuda.schedule import Launch, schedule
from dsopt.backends.cuda.source import kernel_source, source_file
from dsopt.backends.tir.program import Kernel

_ANY = "kernel"


@dataclass(frozen=True)
class CompiledKernels:
    """source: the file.  symbols, launches: by the name of the LoopProgram's kernel, the function to call and its shape."""

    source: str
    symbols: Mapping[str, str]
    launches: Mapping[str, Launch]


def write_kernels(kernels: Sequence[Kernel], progress: Callable[[int, int, str], None]) -> CompiledKernels:
    """Schedule and print every kernel. A symbol is numbered, which keeps it apart from what C and CUDA call their functions."""
    symbols: dict[str, str] = {}
    launches: dict[str, Launch] = {}
    known: dict[str, str] = {}
    definitions: list[str] = []
    for number, kernel in enumerate(kernels):
        progress(number, len(kernels), "writing kernels")
        scheduled = schedule(kernel.func)
        launches[kernel.name] = scheduled.launch
        text = kernel_source(_ANY, scheduled.function)
        if text not in known:
            known[text] = f"k{len(known)}_{kernel.name}"
            comment = f"// {kernel.layer} {kernel.source}".rstrip()
            definitions.append(f"{comment}\n" + text.replace(f" {_ANY}(", f" {known[text]}(", 1))
        symbols[kernel.name] = known[text]
    return CompiledKernels(source_file(definitions), symbols, launches)
