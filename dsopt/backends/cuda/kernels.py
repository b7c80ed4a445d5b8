"""The kernels of a program as one CUDA source file; loop nests that are equal but for their names become one kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dsopt.backends.cuda.launch import Launch, launch_shape
from dsopt.backends.tir.cuda_source import bind_grid, cuda_definition, grid_steps
from dsopt.backends.tir.program import Kernel

_ANY = "kernel"

PRELUDE = """\
// Kernels of one model, written by dsopt. Each thread computes one step of a kernel's grid; no kernel uses shared memory.
#ifdef __CUDACC_RTC__
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#else
#include <stdint.h>
#endif
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
// A NaN wins, as in torch; CUDA's own max and min drop it.
template <class T>
static __device__ inline T maximum(T a, T b) { return a > b || a != a ? a : b; }
template <class T>
static __device__ inline T minimum(T a, T b) { return a < b || a != a ? a : b; }
#define max maximum
#define min minimum
#define CUDART_INF_F __int_as_float(0x7f800000)
#define CUDART_NAN_F __int_as_float(0x7fffffff)
"""
"""What every file starts with. NVRTC, nvcc and, behind the emulator's header, a host compiler take the same text, so it stays
within what the three agree on."""


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
        launch = launches[kernel.name] = launch_shape(grid_steps(kernel.func))
        text = cuda_definition(_ANY, bind_grid(kernel.func, launch.threads))
        if text not in known:
            known[text] = f"k{len(known)}_{kernel.name}"
            comment = f"// {kernel.layer} {kernel.source}".rstrip()
            definitions.append(f"{comment}\n" + text.replace(f" {_ANY}(", f" {known[text]}(", 1))
        symbols[kernel.name] = known[text]
    return CompiledKernels("\n".join([PRELUDE, *definitions]), symbols, launches)
