"""What an artifact is timed against: the same program in eager torch, in torch's own ONNX export under ONNX Runtime, and in inductor."""

from __future__ import annotations

import io
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from torch import Tensor, fx, nn

from dsopt.errors import ToolchainError, UsageError
from dsopt.ir import Program

PEERS = ("torch", "onnxruntime", "inductor")

Call = Callable[[], Any]
"""One run on inputs that were bound before."""


class GraphModule(nn.Module):
    """A program as torch's own generated code: no interpreter stands between the operators, as in the user's module."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self._graph = fx.GraphModule(nn.Module(), program.clone().graph)
        stored = [
            *(spec.name for spec in program.signature.weights),
            *(state.name for state in program.signature.states),
        ]
        self._names = [f"stored_{number}" for number in range(len(stored))]
        for attribute, name in zip(self._names, stored, strict=True):
            self.register_buffer(attribute, program.weights[name].detach().clone())
        self._states = len(program.signature.states)
        self.eval()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Take flat inputs, start from the first values of the states, and return the user's outputs."""
        results = self._graph(*(getattr(self, name) for name in self._names), *inputs)
        return tuple(results[self._states :])


def open_peer(name: str, program: Program, inputs: tuple[Tensor, ...], threads: int | None) -> Call:
    """Prepare a peer on the given inputs. Raises UsageError for an unknown one, ToolchainError where it cannot be built here."""
    makers = {"torch": _eager, "onnxruntime": _onnx, "inductor": _inductor}
    if name not in makers:
        raise UsageError("DS0453", f"unknown peer {name!r}", fix=f"known: {', '.join(PEERS)}")
    return makers[name](program, inputs, threads)


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Let torch use so many threads, and put the number back."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's compilers from printing progress, logging what is not installed, and warning about themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _eager(program: Program, inputs: tuple[Tensor, ...], threads: int | None) -> Call:
    module = GraphModule(program)

    def call() -> Any:
        with torch.inference_mode():
            return module(*inputs)

    return call


def _onnx(program: Program, inputs: tuple[Tensor, ...], threads: int | None) -> Call:
    import onnxruntime as ort

    try:
        with _quiet():
            exported = torch.onnx.export(GraphModule(program), inputs, dynamo=True, external_data=False)
        assert exported is not None
        model = exported.model_proto.SerializeToString()
    except ModuleNotFoundError:
        raise
    except Exception as error:  # the exporter fails in as many ways as there are models
        raise ToolchainError(
            "DS0454", "torch.onnx.export cannot write this model, so there is nothing to compare with",
            why=f"{type(error).__name__}: {str(error).strip()[:300]}", fix="leave onnxruntime out of --against",
        ) from error  # fmt: skip
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    feeds = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    return lambda: session.run(None, feeds)


def _inductor(program: Program, inputs: tuple[Tensor, ...], threads: int | None) -> Call:
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        raise ToolchainError("DS0454", "inductor needs a C++ compiler, and there is none", fix="apt install g++")
    try:
        with _quiet(), torch.inference_mode():
            compiled = torch.compile(GraphModule(program))
            compiled(*inputs)
    except Exception as error:  # inductor fails in as many ways as there are models
        raise ToolchainError(
            "DS0454", "inductor cannot compile this model, so there is nothing to compare with",
            why=f"{type(error).__name__}: {str(error).strip()[:300]}", fix="leave inductor out of --against",
        ) from error  # fmt: skip

    def call() -> Any:
        with torch.inference_mode():
            return compiled(*inputs)

    return call
