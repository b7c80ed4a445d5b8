"""dsopt run: an artifact on inputs from a file, or on seeded ones."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsopt.cli.options import fixing_dims, speaking
from dsopt.cli.output import Output, table

if TYPE_CHECKING:
    from dsopt.feeds import Array, Feed
    from dsopt.runtime import Session

_RUNS_AT_ONCE = 64


@click.command(short_help="Run an artifact.")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--inputs",
    default="random",
    show_default=True,
    metavar="FILE.npz|random",
    help="An .npz with an array for each input, or random ones.",
)
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Write the outputs to this .npz file.")
@click.option("--threads", type=click.IntRange(1), help="Threads of the CPU; by default one for each core.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of random inputs.")
@fixing_dims
@speaking
def command(
    console: Output,
    artifact: Path,
    inputs: str,
    threads: int | None,
    seed: int,
    dim: dict[str, int],
    output: Path | None,
) -> None:
    """Run ARTIFACT and show its outputs. Several samples in the file are several runs, with the state carried from each to the next."""
    from dsopt.runtime import load

    with console.bars() as progress, load(artifact, threads=threads) as session:
        feeds = read_feeds(session, inputs, dim, seed)
        is_fed_nan = _note_nan(console, "input", feeds)
        results: list[dict[str, Array]] = []
        for start in range(0, len(feeds), _RUNS_AT_ONCE):
            progress(start, len(feeds), "running")
            results += session.run_many(feeds[start : start + _RUNS_AT_ONCE])
        names = [spec.name for spec in session.outputs]
    if not is_fed_nan:
        _note_nan(console, "output", results)
    stacked = {name: _joined([result[name] for result in results]) for name in names}
    if output is not None:
        _write(output, stacked)
    rows = [_row(name, array) for name, array in stacked.items()]
    header = ["output", "dtype", "shape", "min", "mean", "max"]
    document = {
        "artifact": str(artifact), "runs": len(feeds), "written": None if output is None else str(output),
        "outputs": [dict(zip(["name", *header[1:]], row, strict=True)) for row in rows],
    }  # fmt: skip
    console.result(document, table(header, rows) + (f"\n{len(feeds)} runs" if len(feeds) > 1 else ""))


def read_feeds(session: Session, inputs: str, dims: dict[str, int], seed: int) -> list[Feed]:
    """Return the inputs of each run: from an .npz, or one seeded run for "random"."""
    from dsopt.feeds import read_npz, split_feeds
    from dsopt.runtime.examples import example_feeds

    if inputs == "random":
        return [example_feeds(session.inputs, session.dims, dims, seed)]
    return split_feeds(read_npz(inputs), session.artifact.manifest["inputs"])


def _note_nan(console: Output, what: str, runs: Sequence[Mapping[str, Array]]) -> bool:
    """Say which inputs or outputs are no numbers, and return whether any are: integer code gives results for NaN all the same."""
    import numpy as np

    counts: dict[str, int] = {}
    for run in runs:
        for name, array in run.items():
            if np.issubdtype(array.dtype, np.floating) and np.isnan(array).any():
                counts[name] = counts.get(name, 0) + 1
    for name, count in counts.items():
        console.note(f"{what} {name} holds NaN in {count:,} of {len(runs):,} runs")
    return bool(counts)


def _joined(arrays: list[Array]) -> Array:
    """Return the outputs of one run as they are, of several runs along a new first axis; a list of them if shapes differ."""
    import numpy as np

    from dsopt.errors import UsageError

    if len({array.shape for array in arrays}) > 1:
        raise UsageError(
            "DS0921", "the runs give outputs of different shapes", fix="run samples of one shape at a time"
        )
    return arrays[0] if len(arrays) == 1 else np.stack(arrays)


def _write(path: Path, arrays: dict[str, Array]) -> None:
    import numpy as np

    from dsopt.artifact.writing import replace_file

    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    replace_file(path, buffer.getvalue())


def _row(name: str, array: Array) -> tuple[Any, ...]:
    if array.size == 0:
        return name, str(array.dtype), list(array.shape), None, None, None
    low, high, mean = array.min().item(), array.max().item(), float(array.mean(dtype="float64"))
    return name, str(array.dtype), list(array.shape), low, mean, high
