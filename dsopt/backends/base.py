"""What a backend is: passes in order, a list of all blockers, and code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

from torch import fx

from dsopt.artifact import Artifact
from dsopt.backends import BACKENDS
from dsopt.errors import UnsupportedOpError
from dsopt.ir import Program
from dsopt.ir.symbols import Size
from dsopt.passes.base import Pass
from dsopt.runtime.executor import Executor
from dsopt.target import Target


@dataclass(frozen=True)
class Blocker:
    """A node that a backend cannot run: why, and the nearest form that it can."""

    node: str
    op: str
    layer: str
    source: str
    why: str
    fix: str = ""

    @staticmethod
    def of(program: Program, node: fx.Node, why: str, fix: str = "") -> Blocker:
        """Describe a node of a program."""
        return Blocker(node.name, str(node.target), program.layer(node), program.source(node), why, fix)

    def __str__(self) -> str:
        place = "".join(f" {word} {text}" for word, text in (("in", self.layer), ("at", self.source)) if text)
        return f"%{self.node} {self.op}{place}: {self.why}" + (f" ({self.fix})" if self.fix else "")


def _no_progress(done: int, total: int, what: str) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class EmitOptions:
    """What `emit` is told beside program and target. progress(done, total, what) shows a bar; `name` becomes a C identifier.

    optimize: what code is made for, "speed", "ram", "flash" or "balanced".  integer_ports: take inputs and give outputs as the integers
    that the code works with, where nothing but rounding is between.
    """

    name: str = "model"
    seed: int = 0
    progress: Callable[[int, int, str], None] = _no_progress
    integer_ports: bool = False
    optimize: str = "balanced"


@runtime_checkable
class Backend(Protocol):
    """Turns programs into artifacts for one family of targets; knows TVM, C or ONNX, which passes do not."""

    needs_fixed_sizes: bool
    """Whether every dim must be fixed before `emit`."""

    def pipeline(self, target: Target) -> tuple[Pass, ...]:
        """Return the default passes for `target`, in order: the one place where the order is written down."""

    def unsupported(self, program: Program, target: Target) -> tuple[Blocker, ...]:
        """Return the nodes this backend cannot emit, all of them at once, asked before any work is done."""

    def emit(self, program: Program, target: Target, options: EmitOptions) -> Artifact:
        """Generate code and place memory; the manifest gets at least `signature_manifest(program)`, "target" and "layers".

        Raises UnsupportedOpError, ToolchainError, or BudgetError with the bytes needed and given.
        """

    def lowering(self, target: Target) -> tuple[Pass, ...]:
        """Return the passes that a quantised program goes through last, whichever passes the user chose before."""

    def cost(self, program: Program, target: Target, options: EmitOptions) -> Mapping[str, float]:
        """Return {"seconds", "ram_bytes"} of a program that went through all passes, for a pass that is to cut one of them.

        The same program gives the same numbers every time: they are estimates, or counted on an emulated core. Limits of the target
        are not looked at. Raises ToolchainError for what cannot be found out here.
        """

    def judge_executor(self, artifact: Artifact) -> tuple[Executor | None, str]:
        """Open what `emit` made in the fastest place that runs the generated code itself, to judge it on many samples."""

    def check_executor(self, artifact: Artifact) -> tuple[Executor | None, str]:
        """Open what `emit` made so that the build can be compared with the model; (None, why) where nothing here can run it.

        With an executor, the text says where it runs.
        """


@runtime_checkable
class SeveralWays(Protocol):
    """A backend whose artifacts may run in several ways, each of which is compared with the model."""

    def other_executors(self, artifact: Artifact) -> Sequence[tuple[Executor, str]]:
        """Open what `emit` made in each way that `check_executor` did not take, with the text that says where it runs."""


INTEGER_LOWERING = "lower-integer,fold-constants,remove-dead-code"
"""What a quantised program goes through last where code is generated for integers; zero first states and tables are constants."""


def load_backend(target: Target) -> Backend:
    """Import the backend of a target."""
    module, _, attribute = BACKENDS[target.kind].partition(":")
    backend: Backend = getattr(import_module(module), attribute)()
    return backend


def refuse(blockers: Sequence[Blocker], target: Target) -> None:
    """Raise one UnsupportedOpError that lists all blockers; do nothing if there are none."""
    if blockers:
        lines = "\n".join(str(blocker) for blocker in blockers)
        raise UnsupportedOpError(
            "DS0401", f"{target.name} cannot run {len(blockers)} of the program's operators", where=lines,
            fix="change these lines of the model, or choose a target that has them (dsopt inspect MODEL --target T)",
        )  # fmt: skip


def signature_manifest(program: Program) -> dict[str, Any]:
    """Return the manifest's "inputs", "outputs", "states", "dims", "input_tree", "output_tree" and "argument_names".

    A state's input and output have the graph-level names "state.NAME" and "next.NAME"; its first value is states/N.npy.
    """

    def tensor(name: str, node: fx.Node) -> dict[str, Any]:
        shape: list[Size] = list(program.shape(node))
        return {"name": name, "shape": shape, "dtype": str(program.dtype(node)).removeprefix("torch.")}

    signature = program.signature
    return {
        "inputs": [tensor(spec.name, node) for spec, node in zip(signature.inputs, program.inputs, strict=True)],
        "outputs": [tensor(spec.name, node) for spec, node in zip(signature.outputs, program.outputs, strict=True)],
        "states": [
            {**tensor(state.name, state.placeholder), "input": f"state.{state.name}", "output": f"next.{state.name}",
             "file": f"states/{number}.npy"}
            for number, state in enumerate(program.states)
        ],
        "dims": {name: {"min": dim.min, "max": dim.max} for name, dim in sorted(program.dims.items())},
        "input_tree": signature.input_tree,
        "output_tree": signature.output_tree,
        "argument_names": list(signature.argument_names),
    }  # fmt: skip


def state_files(program: Program) -> dict[str, bytes]:
    """Return the first values of the states as .npy files, under the names that `signature_manifest` gives."""
    import io

    import numpy as np

    files: dict[str, bytes] = {}
    for number, state in enumerate(program.states):
        buffer = io.BytesIO()
        np.save(buffer, program.weights[state.name].detach().numpy(), allow_pickle=False)
        files[f"states/{number}.npy"] = buffer.getvalue()
    return files
