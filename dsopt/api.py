"""The whole story on one screen: capture -> passes -> backend -> check -> artifact."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dsopt.accuracy.gate import Gate, pass_gate
from dsopt.accuracy.job import QUANTISING, Draft, Job
from dsopt.accuracy.judge import Verdict
from dsopt.accuracy.samples import CALIBRATION_SAMPLES, LABELS, read_samples
from dsopt.artifact import Artifact
from dsopt.backends.base import Backend, EmitOptions, load_backend
from dsopt.backends.check import Agreement
from dsopt.errors import UnsupportedOpError, UsageError
from dsopt.feeds import Feed
from dsopt.frontend import load
from dsopt.ir import Program
from dsopt.lock import lock_file
from dsopt.passes.base import Pass, PassRecord, parse_pipeline
from dsopt.passes.quantize.scales import refuse_scales
from dsopt.target import Target, parse_target

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

    from dsopt.frontend.export import DynamicSizes
    from dsopt.frontend.spec import ModelSpec

Progress = Callable[[int, int, str], None]
IOS = ("float", "int8")
OPTIMIZED_FOR = ("speed", "balanced", "ram", "flash")


def _no_progress(done: int, total: int, what: str) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Build:
    """What `build` made: the artifact, the program that it runs, what each pass did, and how the emitted code compares.

    verdict: of the accuracy gate; None where none was asked for.
    """

    artifact: Artifact
    program: Program
    records: tuple[PassRecord, ...]
    agreement: Agreement
    verdict: Verdict | None = None


def capture(
    model: nn.Module | ExportedProgram | ModelSpec | str | Path,
    example: Sequence[Any] = (),
    dynamic: DynamicSizes | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    trust_pickle: bool = False,
) -> Program:
    """Make a Program of a module, an exported program, a ModelSpec, a file (.pt2, .onnx, .pt) or "package.module:factory".

    example: positional arguments of one call; kwargs: its keyword arguments.  dynamic: {"x": {0: "batch"}}, the sizes that vary.
    trust_pickle: unpickle a .pt that holds a whole module, which runs code from the file.
    Raises CaptureError with the user's line, ReadError for a damaged file, UsageError for names that do not fit.
    """
    return load.capture_any(model, tuple(example), dict(kwargs or {}), dynamic, trust_pickle)


def load_model(
    text: str, inputs: Sequence[str] = (), dims: Mapping[str, int] | None = None, trust_pickle: bool = False
) -> Program:
    """Capture what a command line names, with inputs as "name:2x3:float32" where it carries no example, and fix `dims`."""
    program = load.capture_text(text, tuple(inputs), trust_pickle)
    return program.specialize(dims) if dims else program


def compile(
    program: Program,
    target: Target | str,
    passes: Sequence[Pass] | str | None = None,
    data: Sequence[Feed] | Mapping[str, Any] | str | Path | None = None,
    **options: Any,
) -> Artifact:
    """Run the target's passes (or the given ones), emit, and check the emitted code against the program. See `build`."""
    return build(program, target, passes, data, **options).artifact


def build(
    program: Program,
    target: Target | str,
    passes: Sequence[Pass] | str | None = None,
    data: Sequence[Feed] | Mapping[str, Any] | str | Path | None = None,
    *,
    name: str = "model",
    seed: int = 0,
    tolerance: float = 1e-4,
    dump: Path | None = None,
    progress: Progress = _no_progress,
    gate: Gate | None = None,
    calibration_samples: int = CALIBRATION_SAMPLES,
    io: Literal["float", "int8"] = "float",
    optimize: Literal["speed", "balanced", "ram", "flash"] = "balanced",
) -> Build:
    """Compile a program and keep what was learned on the way.

    passes: instead of the target's own pipeline, in which "..." stands for it: "...,quantize{weights=4}".  data: an .npz, arrays by
    input name, or feeds.  `calibration_samples` of them, drawn by the seed, calibrate; the rest are judged by `gate`; some are used
    for the check, which takes seeded inputs otherwise.  tolerance: largest max|a-b| / max|b| of an output; quantised code is
    compared with the quantised program, and not with the float one.  io: "int8" for microcontroller code that takes and gives the
    integers that it works with; running an artifact from Python takes and gives real numbers either way.  optimize: what
    code for a microcontroller is made for; "ram" runs first layers patch by patch, at the price of up to half the products again.
    Raises UsageError for options that the target or the program has no use for, UnsupportedOpError with all blockers, PassError,
    BudgetError, ToolchainError, and CheckError where the emitted code disagrees with the program, or misses the gate.
    """
    target = parse_target(target) if isinstance(target, str) else target
    _check_options(target, io, optimize)
    backend = load_backend(target)
    _check_program(program, target, backend)
    pipeline = _pipeline(backend, target, passes)
    options = EmitOptions(name, seed, progress, io == "int8", optimize)
    samples = None if data is None else read_samples(program, data, gate.labels if gate else LABELS)
    if samples is not None and any(each.name in QUANTISING for each in pipeline):
        samples.refuse_nan()
    job = Job(program, target, backend, samples, calibration_samples, options, tolerance, dump)
    if gate is None:
        return _finished(job, job.compile(pipeline), pipeline)
    draft, verdict, pipeline = pass_gate(job, pipeline, gate)
    return _finished(job, draft, pipeline, verdict)


def cost_model(
    target: Target | str,
    passes: Sequence[Pass] | str | None = None,
    data: Sequence[Feed] | Mapping[str, Any] | str | Path | None = None,
    *,
    seed: int = 0,
    calibration_samples: int = CALIBRATION_SAMPLES,
) -> Callable[[Program], Mapping[str, float]]:
    """Return what `PassContext(cost=...)` takes: {"seconds", "ram_bytes"} of a program that these passes and the target will get.

    passes, data: as of `build`, without the pass that asks.  Microcontrollers: the arena, and cycles of generated code on an emulated
    core. Else: a roofline, and the bytes of weights and of values alive together.
    """
    target = parse_target(target) if isinstance(target, str) else target
    backend = load_backend(target)
    pipeline = _pipeline(backend, target, passes)

    def cost(program: Program) -> Mapping[str, float]:
        _check_program(program, target, backend)
        samples = None if data is None else read_samples(program, data)
        options = EmitOptions(seed=seed, progress=_no_progress)
        return Job(program, target, backend, samples, calibration_samples, options, 0.0).cost(program, pipeline)

    return cost


def _finished(job: Job, draft: Draft, pipeline: Sequence[Pass], verdict: Verdict | None = None) -> Build:
    manifest = {
        **draft.artifact.manifest,
        "passes": [record.as_dict() for record in draft.records],
        "check": draft.agreement.as_dict(),
    }
    if draft.statistics:
        manifest["quantization"] = [each.as_dict() for each in draft.statistics]
    if draft.statistics or (job.samples is not None and any(each.changes_outputs for each in pipeline)):
        manifest["calibration"] = job.calibration_record()
    if verdict is not None:
        manifest["accuracy"] = verdict.as_dict()
    files = {**draft.artifact.files, "lock.json": lock_file(job.program, job.target, pipeline, job.options.seed)}
    return Build(
        replace(draft.artifact, manifest=manifest, files=files), draft.program, draft.records, draft.agreement, verdict
    )


def _check_options(target: Target, io: str, optimize: str) -> None:
    """Refuse what the target would ignore, and what there is not."""
    for name, value, usual, known in (("io", io, "float", IOS), ("optimize", optimize, "balanced", OPTIMIZED_FOR)):
        if value not in known:
            raise UsageError("DS0308", f"unknown {name} {value!r}", fix="known: " + ", ".join(known))
        if value != usual and target.kind != "mcu":
            raise UsageError(
                "DS0308", f"{name} {value!r} is for microcontrollers, and the target is {target.name}",
                fix=f"leave --{name} out (in Python {name}=), or compile for mcu:...",
            )  # fmt: skip


def _check_program(program: Program, target: Target, backend: Backend) -> None:
    if not isinstance(program, Program):
        raise UsageError(
            "DS0405",
            f"only a Program can be compiled, not a {type(program).__name__}",
            fix="capture it first: dsopt.capture(model, (example,))",
        )
    if backend.needs_fixed_sizes and program.dims:
        sizes = {name: 1 if name == "batch" else size for name, size in program.example_sizes().items()}
        flags = " ".join(f"--dim {name}={sizes.get(name, dim.min)}" for name, dim in program.dims.items())
        raise UnsupportedOpError(
            "DS0404", f"{target.name} needs fixed sizes, and {_vary(list(program.dims))}",
            why="its loops and its memory are laid out at compile time",
            fix=f"fix them, for instance by {flags} (in Python: program.specialize({sizes}))",
        )  # fmt: skip
    refuse_scales(program)


def _vary(names: Sequence[str]) -> str:
    """Return "batch varies" or "batch, height and width vary"."""
    *others, last = names
    return f"{', '.join(others)} and {last} vary" if others else f"{last} varies"


def _pipeline(backend: Backend, target: Target, passes: Sequence[Pass] | str | None) -> tuple[Pass, ...]:
    if passes is None:
        return backend.pipeline(target)
    if not isinstance(passes, str):
        return tuple(passes)
    own = ",".join(map(str, backend.pipeline(target)))
    return parse_pipeline(re.sub(r"(^|,)\s*\.\.\.\s*(?=,|$)", lambda match: match[1] + own, passes.strip()))
