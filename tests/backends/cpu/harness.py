"""Run a function through export, Program, ONNX and ONNX Runtime, for comparison with eager torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, export

from dsopt.artifact import Artifact
from dsopt.backends.base import EmitOptions
from dsopt.backends.cpu import CpuBackend
from dsopt.ir import Program
from dsopt.ir.build import from_exported
from dsopt.runtime.onnx import OnnxExecutor, open_executor
from dsopt.target import CpuTarget


class Wrapped(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Any:
        return self.function(*args)


def program_of(
    function: Callable[..., Any], inputs: tuple[Tensor, ...], other: tuple[Tensor, ...] | None = None
) -> Program:
    """Export; axes whose sizes differ in `other` vary, equal differences sharing one dim."""
    made = function if isinstance(function, nn.Module) else Wrapped(function)
    dynamic: Any = None
    if other is not None:
        specs = tuple(
            {axis: Dim.AUTO for axis, sizes in enumerate(zip(a.shape, b.shape, strict=True)) if sizes[0] != sizes[1]}
            for a, b in zip(inputs, other, strict=True)
        )
        dynamic = specs if isinstance(function, nn.Module) else (specs,)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about its own modules while it exports them
        return from_exported(export(made.eval(), inputs, dynamic_shapes=dynamic, strict=False))


def emit(program: Program) -> Artifact:
    """Compile without passes."""
    return CpuBackend().emit(program, CpuTarget(), EmitOptions())


def feeds(program: Program, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    """Return flat inputs and first states by graph-level name."""
    named = {spec.name: tensor.numpy() for spec, tensor in zip(program.signature.inputs, inputs, strict=True)}
    return named | {f"state.{state.name}": program.weights[state.name].numpy() for state in program.states}


def run(executor: OnnxExecutor, program: Program, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the user's outputs in order."""
    results = executor.run(feeds(program, inputs))
    return [torch.from_numpy(results[spec.name]) for spec in program.signature.outputs]


def executor_of(program: Program) -> OnnxExecutor:
    """Emit and open on one thread."""
    return open_executor(emit(program), threads=1)


def flat(result: Any) -> list[Tensor]:
    """Return the tensors of a nested result in order."""
    if isinstance(result, Tensor):
        return [result]
    children = result.values() if isinstance(result, dict) else result
    return [tensor for child in children for tensor in flat(child)]


def assert_close(got: list[Tensor], expected: list[Tensor], tolerance: float = 1e-5) -> None:
    """Compare shapes and dtypes exactly, floats by max |a - b| / max |b|, the rest bit for bit."""
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        if not b.dtype.is_floating_point:
            assert torch.equal(a, b), (a, b)
            continue
        assert torch.equal(a.isnan(), b.isnan()), (a, b)
        assert torch.equal(torch.where(a.isinf(), a, 0), torch.where(b.isinf(), b, 0)), (a, b)
        finite = b.isfinite()
        if finite.any():
            error = (a[finite].double() - b[finite].double()).abs().max().item()
            scale = max(b[finite].double().abs().max().item(), 1e-30)
            assert error <= tolerance * scale, f"relative error {error / scale:.2e}"
