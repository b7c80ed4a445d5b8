"""Ahead of time: the kernels as machine code for an architecture, on a machine that needs no GPU, and what that code takes.

Triton compiles a function for given types and constants; the assembler and the reader of its output come in Triton's wheel.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dsopt.backends.cuda.sparse import has_triton, sizes
from dsopt.errors import ToolchainError
from dsopt.sparse_schedule import LEAF, schedule

ARCHS = {"sm_80": 80, "sm_90": 90}
"""The architectures that are compiled for. Code for sm_90 is for that one alone (sm_90a): its matrix instructions are."""

_INTEGERS = {
    "HEADS", "LIST", "PICKS", "COUNT", "OWNER", "NODE", "FIRST", "SIZE", "ORDER", "SORTED", "START", "FIRST_HEAD",
}  # fmt: skip
_OF_THE_DTYPE = {"Q", "K", "V", "O", "DO", "DQ", "DK", "DV", "REST_K", "REST_V"}
_STRIDES = {f"{tensor}_{dim}" for tensor in ("q", "k", "v") for dim in "bht"}


@dataclass(frozen=True)
class Compiled:
    """One kernel's machine code. Its parameters are `parameters` in order, then two pointers of Triton's own, which it does not read.

    parameters: name and type ("*bf16", "*i32", "fp32", "i32", ...); pointers and the strides of "divisible" are multiples of 16.
    threads: of a block.  shared_bytes: dynamic shared memory to launch it with.  registers: a thread.  spill_bytes: local memory of a
    thread, none if everything fits into registers.  wgmma, mma_sync, cp_async: how many of these instructions it has: matrix products
    of sm_90 from shared memory, matrix products from registers, copies to shared memory that go on by themselves.
    """

    name: str
    arch: str
    cubin: bytes
    parameters: tuple[tuple[str, str], ...]
    divisible: tuple[str, ...]
    constants: dict[str, int | bool | str]
    threads: int
    shared_bytes: int
    registers: int
    spill_bytes: int
    wgmma: int
    mma_sync: int
    cp_async: int


def build(problem: sizes.Problem, keys: int, picks: int, arch: str) -> dict[str, Compiled]:
    """Return the kernels of the forward pass by name, for `keys` keys and `picks` picks a tile (see `schedule.picked`), negative for all.

    Raises ToolchainError where Triton is not installed or cannot compile, or for another architecture than `ARCHS`.
    """
    problem = replace(problem, arch=arch)
    return {
        kernel.__name__: compile_kernel(kernel, how, problem, arch) for kernel, how in _forward(problem, keys, picks)
    }


def build_backward(problem: sizes.Problem, keys: int, picks: int, arch: str) -> dict[str, Compiled]:
    """Return the kernels of the gradient by name. Raises what `build` raises."""
    problem = replace(problem, arch=arch)
    return {
        kernel.__name__: compile_kernel(kernel, how, problem, arch) for kernel, how in _backward(problem, keys, picks)
    }


def _forward(problem: sizes.Problem, keys: int, picks: int) -> Iterator[tuple[Any, sizes.Launch]]:
    _need_triton()
    from dsopt.backends.cuda.sparse.kernels.forward import forward
    from dsopt.backends.cuda.sparse.kernels.pool import pool
    from dsopt.backends.cuda.sparse.kernels.select import select

    plan = schedule(keys, picks)
    if plan.is_dense:
        yield forward, sizes.forward_launch(problem, 0)
    else:
        yield pool, sizes.pool_launch(problem, plan)
        yield select, sizes.select_launch(problem, plan, keys // LEAF)
        yield forward, sizes.forward_launch(problem, sizes.node_rows(plan, keys // LEAF))


def _backward(problem: sizes.Problem, keys: int, picks: int) -> Iterator[tuple[Any, sizes.Launch]]:
    _need_triton()
    from dsopt.backends.cuda.sparse.kernels.backward import backward
    from dsopt.backends.cuda.sparse.kernels.keys import keys_backward, sum_rows

    plan = schedule(keys, picks)
    nodes = 0 if plan.is_dense else sizes.node_rows(plan, keys // LEAF)
    yield backward, sizes.backward_launch(problem, nodes)
    yield keys_backward, sizes.keys_launch(problem, not plan.is_dense, False)
    if not plan.is_dense:
        yield sum_rows, sizes.sum_launch(problem, max(problem.head, problem.value_head))


def _need_triton() -> None:
    if not has_triton():
        raise ToolchainError(
            "DS0399", "Triton is not installed", why="it compiles the kernels of sparse attention", fix='pip install "dsopt[cuda]"'
        )  # fmt: skip


def compile_kernel(kernel: Any, how: sizes.Launch, problem: sizes.Problem, arch: str) -> Compiled:
    """Return a kernel's machine code. Raises ToolchainError where it does not compile, or for another architecture than `ARCHS`."""
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as compile_source

    if arch not in ARCHS:
        raise ToolchainError(
            "DS0398", f"the kernels are not compiled for {arch}", fix=f"name one of {', '.join(ARCHS)}"
        )
    types = {name: _type(name, how, problem) for name in kernel.arg_names}
    constants: dict[str, Any] = {name: how.constants.get(name) for name, kind in types.items() if kind == "constexpr"}
    divisible = tuple(name for name, kind in types.items() if kind[0] == "*" or name in _STRIDES or name == "room")
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in divisible}
    try:
        with knobs.compilation.scope():
            # Line numbers would bring the paths of this machine into the code.
            knobs.compilation.disable_line_info = True
            made = compile_source(
                ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=attributes),
                target=GPUTarget("cuda", ARCHS[arch], 32),
                options={"num_warps": how.warps, "num_stages": how.stages},
            )
    except Exception as error:  # Triton has no exception that all of its stages share
        raise ToolchainError(
            "DS0398", f"Triton cannot compile {kernel.__name__} for {arch}", why=str(error)[-2000:], fix="install triton==3.6.0"
        ) from error  # fmt: skip
    ptx, cubin = made.asm["ptx"], made.asm["cubin"]
    registers, spilled = _resources(cubin)
    return Compiled(
        kernel.__name__, arch, cubin, tuple((name, kind) for name, kind in types.items() if kind != "constexpr"), divisible,
        {name: value for name, value in constants.items() if value is not None}, 32 * how.warps, int(made.metadata.shared),
        registers, spilled, len(re.findall(r"wgmma\.mma_async", ptx)), len(re.findall(r"\bmma\.sync", ptx)),
        len(re.findall(r"cp\.async\.c[ag]", ptx)),
    )  # fmt: skip


def _type(name: str, how: sizes.Launch, problem: sizes.Problem) -> str:
    """Return the type of a kernel's argument, as Triton writes it."""
    if name in how.constants or (name in ("BIAS", "WEIGHTS") and not problem.bias):
        return "constexpr"
    if name in _INTEGERS:
        return "*i32"
    if name in _OF_THE_DTYPE:
        return f"*{problem.dtype}"
    if name.isupper():
        return "*fp32"
    if name == "scale":
        return "fp32"
    return "i64" if name.endswith(("_b", "_h")) else "i32"


def _resources(cubin: bytes) -> tuple[int, int]:
    """Return registers and bytes of local memory of a thread, as they stand in the machine code."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        text = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise ToolchainError(
            "DS0398", "the machine code says nothing about registers", why=text[-500:], fix="install triton==3.6.0"
        )
    return int(found[1]), int(found[2])
