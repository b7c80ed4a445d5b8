"""Compile small programs for a GPU and run what comes out on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dsopt.artifact import Artifact
from dsopt.backends.base import EmitOptions
from dsopt.backends.check import Agreement, check_against
from dsopt.backends.cuda import CudaBackend
from dsopt.frontend.export import export_module
from dsopt.ir import Program
from dsopt.passes.base import PassContext, PassManager
from dsopt.target import CudaTarget

TOLERANCE = 1e-5
"""max|a-b| / max|b|: sums of float32 in another order than torch's."""


class Plain(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.forward = function  # type: ignore[method-assign]


def capture(model: Callable[..., Any], *inputs: Tensor) -> Program:
    """Export a module or a function."""
    module = model if isinstance(model, nn.Module) else Plain(model)
    return export_module(module.eval(), inputs)


def emit(program: Program, archs: tuple[str, ...] = ("sm_90",)) -> Artifact:
    """Run the backend's own passes and emit."""
    backend, target = CudaBackend(), CudaTarget(archs)
    rewritten, _ = PassManager(backend.pipeline(target)).run(program, PassContext(target=target))
    return backend.emit(rewritten, target, EmitOptions())


def agree(model: Callable[..., Any], *inputs: Tensor, tolerance: float = TOLERANCE) -> Artifact:
    """Compile, run on the host on these inputs and compare with eager torch. Raises CheckError where they differ."""
    program = capture(model, *inputs)
    artifact = emit(program)
    check(artifact, program, *inputs, tolerance=tolerance)
    return artifact


def check(artifact: Artifact, program: Program, *inputs: Tensor, tolerance: float = TOLERANCE) -> Agreement:
    """Compare an artifact with its program on these inputs, or on seeded ones."""
    names = [spec.name for spec in program.signature.inputs]
    feeds = [dict(zip(names, (value.numpy() for value in inputs), strict=True))] if inputs else None
    agreement = check_against(artifact, program, CudaBackend(), feeds, seed=0, tolerance=tolerance)
    assert agreement.max_relative_error is not None, agreement.why_unchecked
    return agreement


def seeded(*shape: int) -> Tensor:
    """Return normal numbers that depend on the shape alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
