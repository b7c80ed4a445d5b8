"""How fast an artifact runs: milliseconds on this computer, instructions on an emulated core, and ratios to peers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dsopt.artifact import Artifact
from dsopt.dims import solve
from dsopt.errors import UsageError
from dsopt.measure.timing import Progress, Ratio, Timing, interleave, paired_ratio, timing
from dsopt.runtime import Session
from dsopt.runtime.examples import example_feeds
from dsopt.runtime.executor import LayerCost

if TYPE_CHECKING:
    from dsopt.feeds import Array
    from dsopt.ir import Program

OURS = "dsopt"


@dataclass(frozen=True)
class Bench:
    """What `bench` measured: times of this computer, or the instructions of one run on an emulated core."""

    target: str
    threads: int | None
    shapes: Mapping[str, tuple[int, ...]]
    timings: tuple[Timing, ...]
    ratios: tuple[Ratio, ...]
    instructions: int | None
    layers: tuple[LayerCost, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return asdict(self)


def bench(
    artifact: Artifact,
    program: Program | None = None,
    against: Sequence[str] = (),
    *,
    feeds: Mapping[str, Array] | None = None,
    sizes: Mapping[str, int] | None = None,
    layers: bool = False,
    threads: int | None = None,
    seconds: float = 3.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Bench:
    """Measure an artifact, on seeded inputs if `feeds` is not given; an emulated core is asked for its instructions.

    against: peers that run `program`, in the same interleaved run.  sizes: of the dims that vary; else those
    of the program's example, or 1 without a program.  layers: also each layer.
    Raises UsageError where peers are named without a program, or for an artifact of a chip.
    """
    if against and program is None:
        raise UsageError("DS0455", "peers run the model, and no model was given", fix="name it with --model")
    is_chip = artifact.target.startswith("mcu:")
    if against and is_chip:
        raise UsageError(
            "DS0455",
            f"{artifact.target} is measured in instructions, which the peers do not have",
            fix="leave --against out",
        )
    with Session(artifact, threads=threads) as session:
        if program is not None and feeds is None:
            sizes = {**_example_sizes(program, artifact), **(sizes or {})}
        given = dict(feeds) if feeds is not None else example_feeds(session.inputs, session.dims, sizes, seed)
        shapes = {name: tuple(array.shape) for name, array in given.items()}
        if is_chip:
            profile = session.profile(given)
            costs = profile.layers if layers else ()
            return Bench(artifact.target, None, shapes, (), (), profile.instructions, costs)
        timings, ratios = _time(session, given, program, against, threads, seconds, seed, progress)
        costs = session.profile(given).layers if layers else ()
    return Bench(artifact.target, threads, shapes, timings, ratios, None, costs)


def _example_sizes(program: Program, artifact: Artifact) -> dict[str, int]:
    """Return the sizes that the dims of the artifact have in the example that the program was captured with."""
    from dsopt.ir import example_inputs
    from dsopt.measure.match import specialized_like

    matched = specialized_like(program, artifact.manifest)
    examples = zip(matched.signature.inputs, example_inputs(matched), strict=True)
    shapes = {spec.name: tuple(value.shape) for spec, value in examples}
    found: dict[str, int] = {}
    for entry in artifact.manifest["inputs"]:
        for size, number in zip(entry["shape"], shapes[entry["name"]], strict=True):
            if isinstance(size, str):
                found |= solve(size, number, found)
    return found


def _time(
    session: Session,
    feeds: Mapping[str, Array],
    program: Program | None,
    against: Sequence[str],
    threads: int | None,
    seconds: float,
    seed: int,
    progress: Progress | None,
) -> tuple[tuple[Timing, ...], tuple[Ratio, ...]]:
    calls: dict[str, Callable[[], Any]] = {OURS: lambda: session.run_flat(feeds)}
    if not against or program is None:
        taken = interleave(calls, seconds=seconds, between=session.reset, seed=seed, progress=progress)
        return (timing(OURS, taken[OURS]),), ()
    import numpy as np
    import torch

    from dsopt.measure.match import specialized_like
    from dsopt.measure.peers import open_peer, torch_threads

    matched = specialized_like(program, session.artifact.manifest)
    inputs = tuple(torch.from_numpy(np.array(feeds[spec.name], order="C")) for spec in matched.signature.inputs)
    with torch_threads(threads):
        for number, name in enumerate(dict.fromkeys(against)):
            if progress:
                progress(number, len(against), f"preparing {name}")
            calls[name] = open_peer(name, matched, inputs, threads)
        taken = interleave(calls, seconds=seconds, between=session.reset, seed=seed, progress=progress)
    ratios = tuple(paired_ratio(name, taken[OURS], taken[name]) for name in calls if name != OURS)
    return tuple(timing(name, milliseconds) for name, milliseconds in taken.items()), ratios
