"""The whole story on one screen: capture -> passes -> backend -> check -> artifact."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsopt.artifact import Artifact
from dsopt.backends.base import Backend, EmitOptions, load_backend, refuse
from dsopt.backends.check import Agreement, check_against
from dsopt.errors import UnsupportedOpError, UsageError
from dsopt.feeds import Feed, read_npz, split_feeds
from dsopt.frontend import load
from dsopt.ir import Program
from dsopt.lock import lock_file
from dsopt.passes.base import Pass, PassContext, PassManager, PassRecord, parse_pipeline
from dsopt.target import Target, parse_target

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

    from dsopt.frontend.export import DynamicSizes
    from dsopt.frontend.spec import ModelSpec

Progress = Callable[[int, int, str], None]


def _no_progress(done: int, total: int, what: str) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Build:
    """What `build` made: the artifact, the program that it runs, what each pass did, and how the emitted code compares."""

    artifact: Artifact
    program: Program
    records: tuple[PassRecord, ...]
    agreement: Agreement


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
    data: Sequence[Feed] | str | Path | None = None,
    **options: Any,
) -> Artifact:
    """Run the target's passes (or the given ones), emit, and check the emitted code against the program. See `build`."""
    return build(program, target, passes, data, **options).artifact


def build(
    program: Program,
    target: Target | str,
    passes: Sequence[Pass] | str | None = None,
    data: Sequence[Feed] | str | Path | None = None,
    *,
    name: str = "model",
    seed: int = 0,
    tolerance: float = 1e-4,
    dump: Path | None = None,
    progress: Progress = _no_progress,
) -> Build:
    """Compile a program and keep what was learned on the way.

    passes: instead of the target's own pipeline; a text such as "fold-batch-norm,fuse-activation" is read.  data: feeds, or an
    .npz, for calibration and for the check (seeded inputs otherwise).  tolerance: largest max|a-b| / max|b| of an output.
    Raises UnsupportedOpError with all blockers, PassError, BudgetError, ToolchainError, and CheckError where the emitted code
    disagrees with the program that was captured.
    """
    target = parse_target(target) if isinstance(target, str) else target
    backend = load_backend(target)
    _check_program(program, target, backend)
    pipeline = _pipeline(backend, target, passes)
    feeds = _feeds(program, data)
    context = PassContext(target=target, calibration=_calibration(feeds), seed=seed, progress=progress)
    rewritten, records = PassManager(pipeline, dump).run(program, context)
    refuse(backend.unsupported(rewritten, target), target)
    artifact = backend.emit(rewritten, target, EmitOptions(name=name, seed=seed, progress=progress))
    progress(0, 1, "check")
    agreement = check_against(artifact, program, backend, feeds, seed=seed, tolerance=tolerance, rewritten=rewritten)
    progress(1, 1, "check")
    manifest = {**artifact.manifest, "passes": [record.as_dict() for record in records], "check": agreement.as_dict()}
    files = {**artifact.files, "lock.json": lock_file(program, target, pipeline, seed)}
    return Build(replace(artifact, manifest=manifest, files=files), rewritten, records, agreement)


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
            "DS0404", f"{target.name} needs fixed sizes, and {', '.join(program.dims)} vary",
            why="its loops and its memory are laid out at compile time",
            fix=f"fix them, for instance by {flags} (in Python: program.specialize({sizes}))",
        )  # fmt: skip


def _pipeline(backend: Backend, target: Target, passes: Sequence[Pass] | str | None) -> tuple[Pass, ...]:
    if passes is None:
        return backend.pipeline(target)
    return parse_pipeline(passes) if isinstance(passes, str) else tuple(passes)


def _feeds(program: Program, data: Sequence[Feed] | str | Path | None) -> list[Feed] | None:
    if data is None:
        return None
    inputs = [
        {
            "name": spec.name,
            "shape": list(program.shape(node)),
            "dtype": str(program.dtype(node)).removeprefix("torch."),
        }
        for spec, node in zip(program.signature.inputs, program.inputs, strict=True)
    ]
    if not isinstance(data, (str, Path)):
        feeds = [dict(feed) for feed in data]
    else:
        feeds = split_feeds(read_npz(data), inputs)
    if not feeds:
        raise UsageError("DS0402", "the data holds no sample", fix="give at least one")
    return feeds


def _calibration(feeds: list[Feed] | None) -> tuple[dict[str, Any], ...]:
    import torch

    return tuple({name: torch.from_numpy(array) for name, array in feed.items()} for feed in feeds or ())
