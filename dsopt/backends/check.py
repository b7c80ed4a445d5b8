"""Compare what was emitted with the program that was captured: part of every build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dsopt.artifact import Artifact
from dsopt.backends.base import Backend, SeveralWays
from dsopt.backends.conditioning import excused
from dsopt.errors import CheckError
from dsopt.ir import Program, example_inputs
from dsopt.runtime.executor import Executor, TracingExecutor

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
    place: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return what belongs into a manifest: no measured figure, so that the same build gives the same bytes anywhere."""
        checked = self.max_relative_error is not None
        return {"checked": checked, "runs": self.runs, "data": self.data, "tolerance": self.tolerance,
                "sizes": dict(self.sizes), "notes": list(self.notes),
                **({"place": self.place} if checked else {"why_unchecked": self.why_unchecked})}  # fmt: skip

    def summary(self) -> str:
        """Say in a line what was compared, where it ran and how it came out."""
        if self.max_relative_error is None:
            return f"not run here: {self.why_unchecked}"
        sizes = "".join(f", {name}={size}" for name, size in sorted(self.sizes.items()))
        runs = "1 run" if self.runs == 1 else f"{self.runs} runs"
        text = f"relative error {self.max_relative_error:.2g} on {runs} of {self.data} inputs{sizes}, by {self.place}"
        return "; ".join([text, *self.notes])


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
    rewritten: Program | None = None,
    float_twin: Program | None = None,
) -> Agreement:
    """Run the artifact and the program on the same inputs. `rewritten` is what was emitted, to name the layer that differs.

    float_twin: the float program of a quantised one, where the emitted code may round at other places: an output may then also
    differ by as much, in the root of the mean square, as the quantised program differs from the float one.  An output of a float
    program that magnifies rounding so that torch is itself as far from the exact result is let pass, with a note.
    Raises CheckError naming the outputs that differ and by how much.
    """
    given = [
        tuple(torch.from_numpy(np.asarray(feed[spec.name], order="C")) for spec in program.signature.inputs)
        for feed in feeds or ()
    ]
    runs = given[:_STEPS] or [
        example_inputs(program, seed=seed + step) for step in range(_STEPS if program.states else 1)
    ]
    data = "given" if given else "seeded"
    executor, place = backend.check_executor(artifact)
    if executor is None:
        return Agreement(0, data, tolerance, None, {}, place)
    others = backend.other_executors(artifact) if isinstance(backend, SeveralWays) else ()
    found = [
        _agreement(way, place, artifact, program, (data, runs), tolerance, rewritten, float_twin)
        for way, place in ((executor, place), *others)
    ]
    return found[0] if len(found) == 1 else _all_of(found)


def _all_of(found: Sequence[Agreement]) -> Agreement:
    """Return the worst of several ways to run an artifact."""
    by_output: dict[str, float] = {}
    for each in found:
        for name, error in each.by_output.items():
            by_output[name] = max(error, by_output.get(name, 0.0))
    return replace(
        found[0],
        max_relative_error=max(each.max_relative_error or 0.0 for each in found),
        by_output=by_output,
        place=", and by ".join(each.place for each in found),
        notes=tuple(dict.fromkeys(note for each in found for note in each.notes)),
    )


def _agreement(
    executor: Executor,
    place: str,
    artifact: Artifact,
    program: Program,
    inputs: tuple[str, Sequence[tuple[torch.Tensor, ...]]],
    tolerance: float,
    rewritten: Program | None,
    float_twin: Program | None,
) -> Agreement:
    """Compare one way to run an artifact, and close it. inputs: what they are, and those of each run."""
    data, runs = inputs
    try:
        errors, empty = _compare(executor, program, runs)
        rounding = (
            _rounding_shares(executor, program, float_twin, runs)
            if float_twin and max(errors.values(), default=0) > tolerance
            else {}
        )
        noise = excused(errors, program, runs, tolerance)
        allowed = {name for name, share in rounding.items() if share <= 1} | set(noise)
        worst = max((error for name, error in errors.items() if name not in allowed), default=0.0)
        first = (
            ""
            if worst <= tolerance
            else _first_wrong_layer(executor, artifact, rewritten or program, runs[0], tolerance)
        )
    finally:
        executor.close()
    if not worst <= tolerance:
        lines = [
            _difference(name, error)
            for name, error in sorted(errors.items())
            if not error <= tolerance and name not in allowed
        ]
        lines += [f"the first layer that differs: {first}"] if first else []
        raise CheckError(
            "DS0403", f"the code emitted for {artifact.manifest['target']} disagrees with the model", where="\n".join(lines),
            why=f"run by {place}, the largest allowed max|a-b| / max|b| is {tolerance:g}, on {data} inputs",
            fix="report it, naming the layer; --tolerance accepts a larger error (but no NaN in one and not in the other)",
        )  # fmt: skip
    notes = tuple(f"output {name!r} held no finite number, so nothing of it was compared" for name in sorted(empty))
    notes += tuple(
        f"output {name!r} differs from the quantised program by {share:.2f} of what quantisation changes"
        for name, share in sorted(rounding.items())
    )
    notes += tuple(
        f"output {name!r} magnifies rounding: torch's float32 itself is as far from float64" for name in sorted(noise)
    )
    return Agreement(
        len(runs),
        data,
        tolerance,
        max(errors.values(), default=0.0),
        errors,
        "",
        place,
        program.sizes_of(runs[0]),
        notes,
    )


def _rounding_shares(
    executor: Executor, program: Program, float_twin: Program, runs: Sequence[tuple[torch.Tensor, ...]]
) -> dict[str, float]:
    """Return for each float output: root mean square of emitted - quantised, over that of quantised - float; from first states."""
    states = {f"state.{state.name}": program.weights[state.name].numpy() for state in program.states}
    sums: dict[str, list[float]] = {}
    for inputs in runs:
        named = {spec.name: value.numpy() for spec, value in zip(program.signature.inputs, inputs, strict=True)}
        got, want, real = executor.run({**named, **states}), program.run(*inputs), float_twin.run(*inputs)
        for spec, rounded, unrounded in zip(program.signature.outputs, want, real, strict=True):
            if rounded.is_floating_point():
                emitted = torch.from_numpy(np.array(got[spec.name])).double() - rounded.double()
                total = sums.setdefault(spec.name, [0.0, 0.0])
                total[0] += float((emitted**2).sum())
                total[1] += float(((rounded.double() - unrounded.double()) ** 2).sum())
    return {name: float(np.sqrt(a / b)) if b > 0 else 0.0 if a == 0 else np.inf for name, (a, b) in sums.items()}


def _difference(name: str, error: float) -> str:
    if np.isinf(error):
        return f"{name}: another shape, or NaN or infinity in one and not in the other"
    return f"{name}: relative error {error:.3g}"


def _first_wrong_layer(
    executor: Executor, artifact: Artifact, program: Program, inputs: tuple[torch.Tensor, ...], tolerance: float
) -> str:
    """Return the first layer whose value differs from torch's, "" where the executor cannot give the values between layers."""
    if not isinstance(executor, TracingExecutor):
        return ""
    named = {spec.name: value.numpy() for spec, value in zip(program.signature.inputs, inputs, strict=True)}
    states = {f"state.{state.name}": program.weights[state.name].numpy() for state in program.states}
    got, want = executor.trace({**named, **states}), program.trace(*inputs)
    nodes = {node.name: node for node in program.graph.nodes}
    for layer in artifact.manifest["layers"]:
        name = layer["node"]
        if name in got and isinstance(want.get(name), torch.Tensor):
            error = relative_error(np.asarray(got[name]), want[name].numpy())
            if not error <= tolerance:
                return f"{program.where(nodes[name])}"
    return ""


def _compare(
    executor: Executor, program: Program, runs: Sequence[tuple[torch.Tensor, ...]]
) -> tuple[dict[str, float], set[str]]:
    """Return the error of each output and state, and the names of those that never held a finite number."""
    states = {state.name: program.weights[state.name] for state in program.states}
    emitted = {f"state.{name}": value.numpy() for name, value in states.items()}
    errors: dict[str, float] = {}
    compared: set[str] = set()
    for inputs in runs:
        named = {spec.name: value.numpy() for spec, value in zip(program.signature.inputs, inputs, strict=True)}
        got = executor.run({**named, **emitted})
        want, states = program.run_stateful(inputs, states)
        wanted = {spec.name: value for spec, value in zip(program.signature.outputs, want, strict=True)}
        wanted |= {f"next.{name}": value for name, value in states.items()}
        for name, value in wanted.items():
            error = relative_error(np.asarray(got[name]), value.detach().numpy())
            errors[name] = max(errors.get(name, 0.0), error)
            if not value.is_floating_point() or bool(value.isfinite().any()):
                compared |= {name} if value.numel() else set()
        emitted = {f"state.{name}": got[f"next.{name}"] for name in states}
    return errors, set(errors) - compared
