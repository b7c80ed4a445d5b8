"""Loop nests -> CUDA C++: the grid of a kernel bound to blocks and threads, then the text of one `__global__` function.

TVM prints the function; its file's prelude, headers and packed calling convention are left out: parameters are raw pointers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.s_tir import Schedule

from dsopt.backends.tir.tvm_adapter import PrimFunc

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
    _T.StmtSimplify(),
    _T.RemoveNoOp(),
)
"""Without TVM's NarrowDataType: indices are int32 as they are, and it would make int32 of an int64 product of small factors."""

_DEVICE_KERNEL = 2
"""TVM's CallingConv::kDeviceKernelLaunch."""


def grid_steps(function: PrimFunc) -> int:
    """Return the number of steps of the grid around the one block of a kernel."""
    work, _, loops = _grid(function)
    return math.prod(int(work.get(loop).extent) for loop in loops)


def bind_grid(function: PrimFunc, threads: int) -> PrimFunc:
    """Fuse the grid and bind it to blockIdx.x and threadIdx.x, `threads` in a block; neighbouring threads take neighbouring steps."""
    work, block, loops = _grid(function)
    fused = work.fuse(*loops) if loops else work.add_unit_loop(block)
    outer, inner = work.split(fused, [None, threads])
    work.bind(outer, "blockIdx.x")
    work.bind(inner, "threadIdx.x")
    return work.mod["main"]


def _grid(function: PrimFunc) -> tuple[Any, Any, list[Any]]:
    work = Schedule(tvm.IRModule({"main": function}))
    (block,) = work.get_child_blocks(work.get_sblock("root"))
    return work, block, list(work.get_loops(block))


def cuda_definition(name: str, function: PrimFunc) -> str:
    """Return the definition of one `extern "C" __global__` function called `name`, of a function whose grid is bound."""
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
    return _cut(name, text)


def _raw_parameters(function: PrimFunc) -> PrimFunc:
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


def _cut(name: str, text: str) -> str:
    """Cut the definition of `name` out of TVM's file, which starts with its own prelude and a prototype."""
    start = re.search(rf'^extern "C" __global__ .*\b{re.escape(name)}\(.*\) \{{$', text, re.MULTILINE)
    assert start is not None, f"TVM wrote no kernel called {name}"
    return text[start.start() :].rstrip() + "\n"
