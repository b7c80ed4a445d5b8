"""Every name of TVM that dsopt uses to write and lower loop nests, behind one file: TVM moves its names between releases."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, TypeAlias

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import PointerType, PrimType, Range
from tvm.s_tir import SBlock, SBlockRealize

__all__ = ["Expr", "PrimFunc", "Stmt", "TirBuffer", "Var", "address", "analyzer", "block_function", "buffer", "constant", "dtype_of",
           "element", "lower_blocks", "machine_code", "pointed_at", "pointer", "raw_function", "sequence", "serial", "tirx",
           "variable"]  # fmt: skip

Expr: TypeAlias = Any
"""A TIR expression; TVM has no type annotations of its own."""
Var: TypeAlias = Any
TirBuffer: TypeAlias = Any
Stmt: TypeAlias = Any
PrimFunc: TypeAlias = Any

_S, _T = tvm.s_tir.transform, tvm.tirx.transform

_TO_LOOPS = (
    _S.LowerInitBlock(),
    _S.PlanAndUpdateBufferAllocationLocation(),
    _S.ConvertBlocksToOpaque(),
    _S.CompactBufferAllocation(),
    _S.LowerMatchBuffer(),
    _S.LowerOpaqueBlock(),
)


def lower_blocks(functions: dict[str, PrimFunc]) -> dict[str, PrimFunc]:
    """Turn S-TIR functions into plain loops over their multi-dimensional buffers; buffers stay parameters."""
    module = tvm.IRModule(dict(functions))
    lowered = tvm.ir.transform.Sequential(list(_TO_LOOPS))(module)
    return {name: lowered[name] for name in functions}


def variable(name: str, dtype: str = "int32") -> Var:
    """Make a scalar variable."""
    return tirx.Var(name, dtype)


def buffer(name: str, shape: tuple[int, ...], dtype: str, scope: str = "global") -> TirBuffer:
    """Declare a contiguous buffer. scope: "global" for a parameter, "local" for registers and the stack."""
    return tirx.decl_buffer(shape, dtype, name=name, scope=scope)


def constant(value: float | int | bool, dtype: str) -> Expr:
    """Make an immediate of `dtype`. A float immediate is rounded to that dtype where it is used."""
    return tirx.FloatImm(dtype, float(value)) if dtype.startswith("float") else tirx.IntImm(dtype, int(value))


def element(source: TirBuffer, *indices: Expr) -> Expr:
    """Read one element."""
    return source[indices]


def address(source: TirBuffer, *indices: Expr) -> Expr:
    """Return a pointer to one element, for a function in C."""
    return tirx.address_of(source[indices])


def block_function(
    name: str,
    params: list[TirBuffer],
    grid: list[tuple[Var, Var, int]],
    reads: list[TirBuffer],
    writes: list[TirBuffer],
    body: Stmt,
) -> PrimFunc:
    """Wrap `body` in one spatial block under one loop per (loop variable, block variable, extent) of `grid`."""
    iters = [tirx.IterVar(Range(0, extent), inner, tirx.IterVar.DataPar) for _, inner, extent in grid]
    block = SBlock(iters, [_whole(b) for b in reads], [_whole(b) for b in writes], name, body)
    nest: Stmt = SBlockRealize([outer for outer, _, _ in grid], True, block)
    for outer, _, extent in reversed(grid):
        nest = tirx.For(outer, 0, extent, tirx.ForKind.SERIAL, nest)
    root = SBlockRealize([], True, SBlock([], [], [], "root", nest))
    function = tirx.PrimFunc(params, root, tvm.ir.TupleType([]))
    return function.with_attr(
        {"global_symbol": name, "s_tir": True, "tirx.noalias": True, "dsopt.written": [str(b.name) for b in writes]}
    )


def _whole(target: TirBuffer) -> Any:
    return tirx.BufferRegion(target, [Range(0, extent) for extent in target.shape])


def serial(var: Var, low: Expr, extent: Expr, body: Stmt) -> Stmt:
    """Make a serial loop."""
    return tirx.For(var, low, extent, tirx.ForKind.SERIAL, body)


def sequence(statements: list[Stmt]) -> Stmt:
    """Put statements one after another."""
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(statements)


def analyzer() -> Any:
    """Return a fresh arithmetic analyzer."""
    return tvm.sym.Analyzer()


_FAR = 1 << 40
"""Elements that memory behind a pointer may have: more than any; in 64 bits, so that indices are."""


def dtype_of(value: Expr) -> str:
    """Return the type of an expression, as "int64" or "float32x8"."""
    return str(value.ty.dtype)


def pointer(name: str, dtype: str) -> Var:
    """Make a pointer parameter."""
    return tirx.Var(name, PointerType(PrimType(dtype)))


def pointed_at(source: Var, dtype: str) -> TirBuffer:
    """Return the memory behind a pointer, indexed in 64 bits and without a bound."""
    return tirx.decl_buffer((constant(_FAR, "int64"),), dtype, name=str(source.name), data=source)


def raw_function(name: str, params: list[Var], behind: list[tuple[TirBuffer, Var]], body: list[Stmt]) -> PrimFunc:
    """Make a C function `void name(params)` of statements. behind: the memory of each parameter that is a pointer.

    Memory behind different pointers is taken to be different memory.
    """
    declared = [tirx.DeclBuffer(memory, data=source) for memory, source in behind]
    function = tirx.PrimFunc(params, sequence([*declared, *body]))
    return function.with_attr({"global_symbol": name, "tirx.noalias": True})


def machine_code(function: PrimFunc, triple: str, cpu: str) -> bytes:
    """Compile one raw function for one CPU by LLVM. Returns a relocatable object file, which may need others of the same kind.

    It stops before TVM's packed calling convention, so that nothing of TVM is needed where the code runs. One function a file, so
    that none is inlined: TVM tells LLVM that what two names point to differs, which is wrong of a parameter and what was given for it.
    """
    target = tvm.target.Target({"kind": "llvm", "mtriple": triple, "mcpu": cpu})
    steps = [_T.BindTarget(target), _T.FlattenBuffer(), _T.LowerIntrin()]
    module = tvm.IRModule({str(function.attrs["global_symbol"]): function})
    built = tvm_ffi.get_global_func("target.build.llvm")(tvm.ir.transform.Sequential(steps)(module), target)
    with tempfile.TemporaryDirectory(prefix="dsopt-llvm-") as folder:
        path = Path(folder) / "code.o"
        built.write_to_file(str(path), "o")
        return path.read_bytes()
