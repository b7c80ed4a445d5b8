"""Does an artifact give what its model gives, and if not, which layer is the first that differs?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsopt.artifact import Artifact
from dsopt.backends.check import relative_error
from dsopt.backends.conditioning import excused
from dsopt.errors import UsageError
from dsopt.feeds import Array, Feed
from dsopt.ir import Program, example_inputs
from dsopt.ir.interpret import evaluate_all
from dsopt.measure.match import at_sizes
from dsopt.measure.reference import Reference, RoundingShares, find_reference
from dsopt.runtime import Session

Progress = Callable[[int, int, str], None]
States = Mapping[str, Tensor]

_SEEDED_RUNS_WITH_STATE = 3
_RUNS_AT_ONCE = 64


@dataclass(frozen=True)
class OutputAgreement:
    """How an output compares over all runs. relative_error: max|a-b| / max|b|, inf where shape, dtype or NaNs differ.

    largest_difference: max|a-b|, NaN where a NaN stands in one only.  note: what the numbers do not say, "" mostly.
    rounding: of a quantised artifact whose code may round at other places, the root of the mean square of the difference over that of
    what quantisation changes; None otherwise.
    own_error: of an output beyond the tolerance, how far torch's float32 itself is from float64, where that explains it; None otherwise.
    """

    name: str
    relative_error: float
    largest_difference: float
    worst_run: int
    note: str = ""
    rounding: float | None = None
    own_error: float | None = None

    def agrees(self, tolerance: float) -> bool:
        """Tell whether it is within the tolerance, within what quantisation itself changes, or within what rounding explains."""
        is_rounded = self.rounding is not None and self.rounding <= 1
        return self.relative_error <= tolerance or is_rounded or self.own_error is not None


@dataclass(frozen=True)
class LayerAgreement:
    """How the result of one layer compares, in the run where the outputs differed most."""

    node: str
    layer: str
    op: str
    source: str
    relative_error: float


@dataclass(frozen=True)
class Verification:
    """What `verify` found. layers: with bisection only, in the order of execution.

    is_quantised: whether the artifact was compared with its model as quantised for the build.  changed_by: the passes that change what
    the model gives, after which the artifact was compared with it; change: max|a-b| / max|b| of each output between that and the model.
    """

    target: str
    runs: int
    tolerance: float
    outputs: tuple[OutputAgreement, ...]
    layers: tuple[LayerAgreement, ...] = ()
    is_quantised: bool = False
    changed_by: tuple[str, ...] = ()
    change: Mapping[str, float] = field(default_factory=dict)

    @property
    def against(self) -> str:
        """Say what the artifact was compared with."""
        if self.is_quantised:
            return "the quantised program"
        return f"the model after {', '.join(self.changed_by)}" if self.changed_by else "the model"

    @property
    def agrees(self) -> bool:
        """Tell whether every output agrees."""
        return all(each.agrees(self.tolerance) for each in self.outputs)

    @property
    def first_difference(self) -> LayerAgreement | None:
        """Return the first layer beyond the tolerance; None if there is none, or without bisection."""
        return next((each for each in self.layers if not each.relative_error <= self.tolerance), None)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        first = self.first_difference
        return {
            "target": self.target, "runs": self.runs, "tolerance": self.tolerance, "agrees": self.agrees,
            "against": self.against, "change": dict(self.change),
            "norm": "max|a-b| / max|b|", "outputs": [asdict(each) for each in self.outputs],
            "layers": [asdict(each) for each in self.layers], "first_difference": None if first is None else asdict(first),
        }  # fmt: skip


def verify(
    artifact: Artifact,
    program: Program,
    feeds: Sequence[Feed] | None = None,
    *,
    sizes: Mapping[str, int] | None = None,
    bisect: bool = False,
    tolerance: float = 1e-4,
    seed: int = 0,
    data: Mapping[str, Array] | str | Path | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Run artifact and program on the same inputs, carrying states from run to run, and compare every output.

    feeds: {input name: array} for each run; seeded ones if not given.  sizes: of the dims that vary, in seeded inputs; a size
    that the artifact fixes must be the same.  bisect: also compare layer by layer, in the run with the largest error.
    data: of a quantised artifact, what it was calibrated on: it is compared with the program that quantising the model gives again.
    Raises UsageError if the program is not the one that the artifact was built from.
    """
    program = at_sizes(program, artifact.manifest, sizes or {})
    runs = _runs(program, feeds, sizes or {}, seed)
    reference = find_reference(program, artifact.manifest, data)
    with Session(artifact) as session:
        outputs = _compare_outputs(session, reference, runs, progress)
        if not reference.is_quantised:
            errors = {each.name: each.relative_error for each in outputs}
            own = excused(errors, reference.program, [runs[each.worst_run] for each in outputs], tolerance)
            outputs = tuple(replace(each, own_error=own.get(each.name)) for each in outputs)
        layers: tuple[LayerAgreement, ...] = ()
        if bisect:
            worst = max(outputs, key=lambda each: each.relative_error, default=None)
            layers = _compare_layers(session, reference.rewritten, runs[: worst.worst_run + 1 if worst else 1])
    change = _change(program, reference, runs) if reference.changed_by else {}
    return Verification(
        artifact.target, len(runs), tolerance, outputs, layers, reference.is_quantised, reference.changed_by, change
    )


def _change(program: Program, reference: Reference, runs: Sequence[tuple[Tensor, ...]]) -> dict[str, float]:
    """Return how far the passes have moved each output of the model, the worst of all runs."""
    states: States | None = None
    changed: States | None = None
    found: dict[str, float] = {}
    for inputs in runs:
        before, states = program.run_stateful(inputs, states)
        after, changed = reference.program.run_stateful(inputs, changed)
        for spec, old, new in zip(program.signature.outputs, before, after, strict=True):
            error = relative_error(new.detach().numpy(), old.detach().numpy())
            found[spec.name] = max(error, found.get(spec.name, 0.0))
    return found


def _runs(
    program: Program, feeds: Sequence[Feed] | None, sizes: Mapping[str, int], seed: int
) -> list[tuple[Tensor, ...]]:
    if feeds is None:
        count = _SEEDED_RUNS_WITH_STATE if program.states else 1
        return [example_inputs(program, sizes, seed + step) for step in range(count)]
    if not feeds:
        raise UsageError("DS0452", "the inputs hold no sample", fix="give at least one")
    names = [spec.name for spec in program.signature.inputs]
    # Arrays mapped read-only or with negative strides are no memory that torch takes.
    return [tuple(torch.from_numpy(np.array(feed[name], order="C")) for name in names) for feed in feeds]


def _named(program: Program, inputs: tuple[Tensor, ...]) -> dict[str, Array]:
    return {spec.name: value.numpy() for spec, value in zip(program.signature.inputs, inputs, strict=True)}


def _compare_outputs(
    session: Session, reference: Reference, runs: Sequence[tuple[Tensor, ...]], progress: Progress | None
) -> tuple[OutputAgreement, ...]:
    session.reset()
    program, shares = reference.program, RoundingShares(reference.float_twin)
    states: States | None = None
    names = [spec.name for spec in program.signature.outputs]
    worst: dict[str, OutputAgreement] = {}
    nothing = dict.fromkeys(names, "")
    for number, (inputs, got) in enumerate(_results(session, program, runs, progress)):
        wanted, states = program.run_stateful(inputs, states)
        shares.add(inputs, dict(zip(names, wanted, strict=True)), got)
        for name, value in zip(names, wanted, strict=True):
            want = value.detach().numpy()
            error = relative_error(got[name], want)
            nothing[name] = _why_nothing(want) if number == 0 or nothing[name] else ""
            if name not in worst or not error <= worst[name].relative_error:
                worst[name] = OutputAgreement(
                    name, error, _largest_difference(got[name], want), number, _what_differs(got[name], want)
                )
    return tuple(
        replace(worst[name], note=worst[name].note or nothing[name], rounding=shares.of(name)) for name in names
    )


def _why_nothing(want: Array) -> str:
    """Say why an output had no number to compare, "" where it had one."""
    if want.size == 0:
        return "nothing compared: it has no element"
    return "" if np.isfinite(want).any() else "nothing compared: it holds only NaN or infinity"


def _what_differs(got: Array, want: Array) -> str:
    """Say what differs beside finite numbers, "" where nothing does."""
    if got.shape != want.shape:
        return f"shape {list(got.shape)} instead of {list(want.shape)}"
    if got.dtype != want.dtype:
        return f"{got.dtype} instead of {want.dtype}"
    if not np.array_equal(np.isnan(got), np.isnan(want)):
        return "NaN in one, not in the other"
    if not np.array_equal(got[np.isinf(got)], want[np.isinf(got)]) or not np.array_equal(np.isinf(got), np.isinf(want)):
        return "infinity in one, not in the other"
    return ""


def _results(
    session: Session, program: Program, runs: Sequence[tuple[Tensor, ...]], progress: Progress | None
) -> Iterator[tuple[tuple[Tensor, ...], dict[str, Array]]]:
    """Yield the inputs of each run and what the artifact gives; an emulated core is started once for many."""
    for start in range(0, len(runs), _RUNS_AT_ONCE):
        if progress:
            progress(start, len(runs), "comparing")
        chunk = runs[start : start + _RUNS_AT_ONCE]
        yield from zip(chunk, session.run_many([_named(program, inputs) for inputs in chunk]), strict=True)


def _largest_difference(got: Array, want: Array) -> float:
    if got.shape != want.shape:
        return float("inf")
    left, right = got.astype(np.float64), want.astype(np.float64)
    if not np.array_equal(np.isnan(left), np.isnan(right)):
        return float("nan")
    with np.errstate(invalid="ignore"):  # infinity less infinity
        difference = np.abs(left - right)
    return float(np.nanmax(difference)) if difference.size and not np.isnan(difference).all() else 0.0


def _compare_layers(
    session: Session, rewritten: Program, runs: Sequence[tuple[Tensor, ...]]
) -> tuple[LayerAgreement, ...]:
    """Compare layers in the last of `runs`, from the states that the runs before it leave behind on either side."""
    session.reset()
    states: States | None = None
    for inputs in runs[:-1]:
        session.run_flat(_named(rewritten, inputs))
        _, states = rewritten.run_stateful(inputs, states)
    got = session.trace(_named(rewritten, runs[-1]))
    with torch.no_grad():
        values = evaluate_all(rewritten.graph, rewritten.bind(runs[-1], states))
    want = {node.name: (node, value) for node, value in values.items()}
    compared: list[LayerAgreement] = []
    for entry in session.artifact.manifest.get("layers", ()):
        name = str(entry.get("node", ""))
        if name not in got or name not in want or not isinstance(want[name][1], Tensor):
            continue
        node, value = want[name]
        compared.append(
            LayerAgreement(
                name, rewritten.layer(node), str(node.target), rewritten.source(node),
                relative_error(got[name], value.detach().numpy()),
            )
        )  # fmt: skip
    return tuple(compared)
