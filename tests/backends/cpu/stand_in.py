"""A stand-in for the compiled kernel of sparse attention: the same interface, computed by the operator's reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from dsopt.errors import ToolchainError
from dsopt.ops.sparse_attention import sparse_attention

LEVELS = {"x86-64-v3": b"\x7fELF three", "x86-64-v4": b"\x7fELF four"}


class KernelConfig:
    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)


class SparseKernel:
    """Notes what it is given. is_wrong: gives zeros, as a miscompiled one might."""

    calls: list[SparseKernel] = []  # noqa: RUF012
    is_wrong = False
    fits = True

    def __init__(self, config: KernelConfig, libraries: Mapping[str, bytes | Path], threads: int) -> None:
        if not self.fits:
            raise ToolchainError("DS0391", "no level fits this CPU")
        for level, content in libraries.items():
            assert (content.read_bytes() if isinstance(content, Path) else content) == LEVELS[level]
        self.config, self.threads, self.runs = config, threads, list[dict[str, Any]]()
        self.calls.append(self)

    def run(self, query: Any, key: Any, value: Any, bias: Any = None, out: Any = None) -> Any:
        self.runs.append({"query": query, "key": key, "value": value, "bias": bias, "out": out})
        c = self.config
        assert (bias is not None) == c.has_bias
        if bias is not None:
            assert bias.ndim == 3 and bias.shape[2] == key.shape[2]
            bias = torch.tensor(bias)[:, :, None]
        q, k, v = (torch.tensor(each) for each in (query, key, value))
        found = sparse_attention(q, k, v, bias, c.causal, c.scale, c.budget, c.unit, c.tile, c.window).numpy()
        out[...] = 0 if self.is_wrong else found
        return out


def install(monkeypatch: pytest.MonkeyPatch) -> type[SparseKernel]:
    """Put the stand-in where the compiler and the runtime look for the kernel, and return its class."""
    runtime, compiler = ModuleType("dsopt.runtime.sparse_kernel"), ModuleType("dsopt.backends.cpu.sparse")
    kernel = type("StandIn", (SparseKernel,), {"calls": []})
    vars(runtime).update(KernelConfig=KernelConfig, SparseKernel=kernel)
    vars(compiler).update(build=lambda config: dict(LEVELS))
    monkeypatch.setitem(__import__("sys").modules, runtime.__name__, runtime)
    monkeypatch.setitem(__import__("sys").modules, compiler.__name__, compiler)
    return kernel
