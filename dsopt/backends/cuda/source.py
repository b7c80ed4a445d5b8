"""Scheduled loop nests -> the text of one CUDA C++ file, with raw pointers for parameters and no headers.

The same file is compiled by NVRTC, by nvcc, and by a host compiler with the emulator's header in front, so it stays within what
the three agree on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

_S, _T = tvm.s_tir.transform, tvm.tirx.transform

_TO_THREADS = (
    _S.LowerInitBlock(),
    _S.PlanAndUpdateBufferAllocationLocation(),
    _S.ConvertBlocksToOpaque(),
    _S.CompactBufferAllocation(),
    _S.LowerMatchBuffer(),
    _S.UnifyThreadBinding(),
    _T.StmtSimplify(),
    _S.LowerOpaqueBlock(),
    _T.FlattenBuffer(),
    _T.NarrowDataType(32),
    _T.StmtSimplify(),
    _T.RemoveNoOp(),
)

_DEVICE_KERNEL = 2
"""TVM's CallingConv::kDeviceKernelLaunch."""

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


def kernel_source(name: str, function: Any) -> str:
    """Return the definition of one `extern "C" __global__` function called `name`."""
    target = tvm.target.Target({"kind": "cuda", "arch": "sm_80"})  # the text is the same for every arch
    module = tvm.ir.transform.Sequential(list(_TO_THREADS))(tvm.IRModule({name: function}))
    device = _raw_parameters(module[name])
    attributes = {
        "target": target,
        "global_symbol": name,
        "calling_conv": _DEVICE_KERNEL,
        "tirx.is_global_func": True,
        "tirx.noalias": True,
    }
    for key, value in attributes.items():
        device = device.with_attr(key, value)
    lowered = _T.LowerIntrin()(tvm.IRModule({name: device}))
    with _nothing_compiled():
        text: str = tvm_ffi.get_global_func("target.build.cuda")(lowered, target).inspect_source()
    return _definition(name, text)


def source_file(definitions: list[str]) -> str:
    """Join the definitions of kernels into one file."""
    return "\n".join([PRELUDE, *definitions])


def _raw_parameters(function: Any) -> Any:
    """Turn buffer parameters into data pointers that are declared as buffers on entry."""
    parameters, declarations = [], []
    for buffer in function.params:
        pointer = tirx.Var(buffer.name, tvm.ir.PointerType(tvm.ir.PrimType(str(buffer.ty.dtype)), "global"))
        parameters.append(pointer)
        declarations.append(tirx.DeclBuffer(buffer, data=pointer))
    body = tirx.SeqStmt([*declarations, function.body])
    return tirx.PrimFunc(parameters, body, tvm.ir.TupleType([]), function.attrs)


@contextmanager
def _nothing_compiled() -> Iterator[None]:
    """Keep TVM from compiling what we ask it to print, which it does where it finds a GPU."""
    hook = "tvm_callback_cuda_compile"
    previous = tvm_ffi.get_global_func(hook, allow_missing=True)
    tvm_ffi.register_global_func(hook, lambda *_: b"", override=True)
    try:
        yield
    finally:
        if previous is None:
            tvm_ffi.remove_global_func(hook)
        else:
            tvm_ffi.register_global_func(hook, previous, override=True)


def _definition(name: str, text: str) -> str:
    """Cut the definition of `name` out of TVM's file, which starts with its own prelude and a prototype."""
    start = re.search(rf'^extern "C" __global__ .*\b{re.escape(name)}\(.*\) \{{$', text, re.MULTILINE)
    assert start is not None, f"TVM wrote no kernel called {name}"
    return text[start.start() :].rstrip() + "\n"
