"""Compiles and links the kernel for each level of the CPU."""

from __future__ import annotations

import platform
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from dsopt.backends.cpu.sparse import attend, best, pool, rows, score, search, tiles
from dsopt.backends.cpu.sparse.form import LEVELS, Form
from dsopt.backends.tir.tvm_adapter import PrimFunc, machine_code
from dsopt.errors import ToolchainError
from dsopt.native import host_compilers
from dsopt.runtime.sparse_call import KernelConfig

_MACHINES = ("x86_64", "AMD64", "amd64")
_TRIPLE = "x86_64-unknown-linux-gnu"
_SECONDS = 120
_FLAGS = ("-shared", "-nostdlib", "-Wl,-z,noexecstack", "-Wl,--build-id=none", "-Wl,-Bsymbolic", "-Wl,-s")


def build(config: KernelConfig, levels: Sequence[str] | None = None) -> dict[str, bytes]:
    """Return a shared object for each level of the CPU, or for some, by its name; {} where there is no kernel for this computer.

    The kernel is for x86-64 and Linux: elsewhere attention takes the form of standard operators. The same sizes give the same bytes
    with the same linker. Raises ToolchainError where no C compiler is found to link.
    """
    if platform.machine() not in _MACHINES or platform.system() != "Linux":
        return {}
    forms = (Form.of(config.head, config.value_head, config.has_bias, level) for level in LEVELS)
    return {form.level.name: _library(form) for form in forms if levels is None or form.level.name in levels}


def functions(form: Form) -> list[PrimFunc]:
    """Return all functions of the kernel."""
    return [
        pool.pool(form), best.best(form), score.score_nodes(form), score.score_keys(form), search.search(), search.cover(form),
        rows.copy_rows(form), rows.choose_rows(form), attend.logits(form), attend.softmax(form), attend.values(form),
        attend.attend(form), tiles.pack(form), tiles.unpack(form), tiles.tiles(form), tiles.dense(form),
    ]  # fmt: skip


def objects(form: Form) -> dict[str, bytes]:
    """Return the relocatable object of each function by its name."""
    return {each.attrs["global_symbol"]: machine_code(each, _TRIPLE, form.level.name) for each in functions(form)}


@lru_cache(maxsize=16)
def _library(form: Form) -> bytes:
    return linked(objects(form))


def linked(codes: dict[str, bytes]) -> bytes:
    """Return the shared object of some objects. Raises ToolchainError where none of the compilers found links them."""
    failures = []
    with tempfile.TemporaryDirectory(prefix="dsopt-link-") as name:
        folder = Path(name)
        for function, code in codes.items():
            (folder / f"{function}.o").write_bytes(code)
        files = [f"{function}.o" for function in codes]
        for command in host_compilers():
            try:
                done = subprocess.run(
                    [*command, *_FLAGS, "-o", "kernel.so", *files], cwd=folder, check=False, capture_output=True,
                    text=True, errors="replace", timeout=_SECONDS, stdin=subprocess.DEVNULL,
                )  # fmt: skip
            except (OSError, subprocess.TimeoutExpired) as error:
                failures.append(f"{command[-1]}: {error}")
                continue
            if done.returncode == 0:
                return (folder / "kernel.so").read_bytes()
            failures.append(f"{command[-1]}: {done.stderr.strip()[:400]}")
    raise ToolchainError(
        "DS0390", "the kernel of sparse attention cannot be linked", why="\n".join(failures) or "no C compiler was found",
        fix="pip install ziglang, or install gcc or clang",
    )  # fmt: skip
