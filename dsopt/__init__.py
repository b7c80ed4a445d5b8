"""dsopt: a compiler for trained PyTorch models. `import dsopt` loads neither torch nor a backend; names are imported when used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsopt.accuracy.gate import Gate
    from dsopt.api import capture, compile, load_model
    from dsopt.artifact import Artifact, load_artifact
    from dsopt.compression import compress
    from dsopt.errors import DsoptError
    from dsopt.frontend.spec import ModelSpec
    from dsopt.ir import Program, Rewriter, find
    from dsopt.ops.sparse_attention import DenseCache, SparseCache
    from dsopt.passes.base import Pass, PassContext, PassManager, PassRecord, parse_pipeline
    from dsopt.target import CpuTarget, CudaTarget, McuTarget, Target, parse_target

__version__ = "0.1.0"

_HOME = {
    "Artifact": "dsopt.artifact",
    "CpuTarget": "dsopt.target",
    "CudaTarget": "dsopt.target",
    "DenseCache": "dsopt.ops.sparse_attention",
    "DsoptError": "dsopt.errors",
    "Gate": "dsopt.accuracy.gate",
    "McuTarget": "dsopt.target",
    "ModelSpec": "dsopt.frontend.spec",
    "Pass": "dsopt.passes.base",
    "PassContext": "dsopt.passes.base",
    "PassManager": "dsopt.passes.base",
    "PassRecord": "dsopt.passes.base",
    "Program": "dsopt.ir",
    "Rewriter": "dsopt.ir",
    "SparseCache": "dsopt.ops.sparse_attention",
    "Target": "dsopt.target",
    "capture": "dsopt.api",
    "compile": "dsopt.api",
    "compress": "dsopt.compression",
    "find": "dsopt.ir",
    "load_artifact": "dsopt.artifact",
    "load_model": "dsopt.api",
    "parse_pipeline": "dsopt.passes.base",
    "parse_target": "dsopt.target",
}
_MODULES = ("runtime", "train")
"""Which can be named without an import of their own."""

__all__ = [
    "Artifact",
    "CpuTarget",
    "CudaTarget",
    "DenseCache",
    "DsoptError",
    "Gate",
    "McuTarget",
    "ModelSpec",
    "Pass",
    "PassContext",
    "PassManager",
    "PassRecord",
    "Program",
    "Rewriter",
    "SparseCache",
    "Target",
    "capture",
    "compile",
    "compress",
    "find",
    "load_artifact",
    "load_model",
    "parse_pipeline",
    "parse_target",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"dsopt.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'dsopt' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
