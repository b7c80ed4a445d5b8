"""Compare what was emitted with the program that was captured: part of every build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dsopt.artifact import Artifact
from dsopt.backends.base import Backend
from dsopt.errors import CheckError
from dsopt.ir import Program, example_inputs
from dsopt.runtime.executor import Executor

Array = npt.NDArray[Any]

_STEPS = 3
"""Runs of the check: more than one, so that state carried from run to run is compared too."""


@dataclass(frozen=True)
class Agreement:
    """How the emitted code compares. max_relative_error: largest max|a-b| / max|b| over outputs; None where nothing could run."""

    runs: int
    data: str
    tolerance: float
    max_relative_error: float | None
    by_output: Mapping[str, float]
    why_unchecked: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return what belongs into a manifest: no measured figure, so that the same build gives the same bytes anywhere."""
        checked = self.max_relative_error is not None
        return {"checked": checked, "runs": self.runs, "data": self.data, "tolerance": self.tolerance,
                **({} if checked else {"why_unchecked": self.why_unchecked})}  # fmt: skip


def relative_error(got: Array, want: Array) -> float:
    """Return max|got - want| / max|want|: 0 where both are equal or NaN alike, inf where shape, NaN or infinity differ.

    Whole numbers and booleans differ by 1 or not at all.
    """
    if got.shape != want.shape or got.dtype != want.dtype:
        return float("inf")
    if got.size == 0:
        return 0.0
    if not np.issubdtype(want.dtype, np.inexact):
        return float(np.any(got != want))
    left, right = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(right)
    if not np.array_equal(np.isfinite(left), finite) or not np.array_equal(
        left[~finite], right[~finite], equal_nan=True
    ):
        return float("inf")
    if not finite.any():
        return 0.0
    difference = np.abs(left[finite] - right[finite]).max()
    scale = np.abs(right[finite]).max()
    return float(difference / scale) if scale > 0 else float(difference)


def check_against(
    artifact: Artifact,
    program: Program,
    backend: Backend,
    feeds: Sequence[Mapping[str, Array]] | None,
    *,
    seed: int,
    tolerance: float,
) -> Agreement:
    """Run the artifact and the program on the same inputs. Raises CheckError naming the outputs that differ and by how much."""
    given = [
        tuple(torch.from_numpy(np.asarray(feed[spec.name], order="C")) for spec in program.signature.inputs)
        for feed in feeds or ()
    ]
    runs = given[:_STEPS] or [
        example_inputs(program, seed=seed + step) for step in range(_STEPS if program.states else 1)
    ]
    data = "given" if given else "seeded"
    executor, why = backend.check_executor(artifact)
    if executor is None:
        return Agreement(0, data, tolerance, None, {}, why)
    try:
        errors = _compare(executor, program, runs)
    finally:
        executor.close()
    worst = max(errors.values(), default=0.0)
    if not worst <= tolerance:
        lines = [
            f"{name}: relative error {error:.3g}" for name, error in sorted(errors.items()) if not error <= tolerance
        ]
        raise CheckError(
            "DS0403", f"the code emitted for {artifact.manifest['target']} disagrees with the model", where="\n".join(lines),
            why=f"the largest allowed max|a-b| / max|b| is {tolerance:g}, on {data} inputs",
            fix="find the layer with dsopt verify --bisect, and report it; --tolerance accepts a larger error",
        )  # fmt: skip
    return Agreement(len(runs), data, tolerance, worst, errors)


def _compare(executor: Executor, program: Program, runs: Sequence[tuple[torch.Tensor, ...]]) -> dict[str, float]:
    states = {state.name: program.weights[state.name] for state in program.states}
    emitted = {f"state.{name}": value.numpy() for name, value in states.items()}
    errors: dict[str, float] = {}
    for inputs in runs:
        named = {spec.name: value.numpy() for spec, value in zip(program.signature.inputs, inputs, strict=True)}
        got = executor.run({**named, **emitted})
        want, states = program.run_stateful(inputs, states)
        wanted = {spec.name: value for spec, value in zip(program.signature.outputs, want, strict=True)}
        wanted |= {f"next.{name}": value for name, value in states.items()}
        for name, value in wanted.items():
            error = relative_error(np.asarray(got[name]), value.detach().numpy())
            errors[name] = max(errors.get(name, 0.0), error)
        emitted = {f"state.{name}": got[f"next.{name}"] for name in states}
    return errors
