"""Every name of TVM that dsopt uses to write and lower loop nests, behind one file: TVM moves its names between releases."""

from __future__ import annotations

from typing import Any, TypeAlias

import tvm
from tvm import tirx
from tvm.ir import Range
from tvm.s_tir import SBlock, SBlockRealize

__all__ = ["Expr", "PrimFunc", "Stmt", "TirBuffer", "Var", "address", "analyzer", "block_function", "buffer", "constant", "element",
           "lower_blocks", "sequence", "serial", "tirx", "variable"]  # fmt: skip

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
