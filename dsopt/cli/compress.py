"""dsopt compress: stages from a trained model to a small artifact, with a row of figures after each."""

from __future__ import annotations

from pathlib import Path

import click

from dsopt.cli.compile import default_output
from dsopt.cli.limits import choose_target, limiting
from dsopt.cli.options import reading_models, speaking
from dsopt.cli.output import Output, pairs
from dsopt.errors import UsageError


@click.command(short_help="Prune, distil, train with quantisation and compile, measuring after each.")
@click.argument("model")
@limiting
@click.option(
    "--stages", required=True,
    help='Passes and trainings in order: "prune{ratio=0.5},distill{epochs=3},qat{epochs=2}"; fine-tune trains on labels alone.',
)  # fmt: skip
@click.option(
    "--data", required=True, type=click.Path(path_type=Path),
    help="What to train and calibrate on: an .npz with an array for each input, and labels.",
)  # fmt: skip
@click.option("--validation", type=click.Path(path_type=Path), help="An .npz of the same form, to take scores on.")
@click.option("--labels", default="labels", show_default=True, metavar="NAME", help="The array that holds the labels.")
@click.option(
    "--metric", help="Judge on --validation by accuracy, rmse, mae, agreement or snr; by default as the labels are."
)
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Samples in a step.")
@click.option(
    "--folder", type=click.Path(file_okay=False, path_type=Path), help="Keep what each stage leaves there, and go on from it."
)  # fmt: skip
@click.option("--passes", help="Passes to compile with instead of the target's own, as for dsopt compile.")
@click.option(
    "--seconds", type=click.FloatRange(0), default=1.0, show_default=True, help="Of timing; 0 leaves times out."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything random.")
@click.option("--device", default="cpu", show_default=True, help="Where to train, as torch names it.")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path),
    help="Folder to write, or one file if it ends in .dsopt. By default MODEL-TARGET in this folder.",
)  # fmt: skip
@reading_models
@speaking
def command(
    console: Output, model: str, target: str | None, board: str | None, boards: tuple[Path, ...], ram: str | None,
    flash: str | None, instructions: str | None, strict: bool, stages: str, data: Path, validation: Path | None, labels: str,
    metric: str | None, batch_size: int, folder: Path | None, passes: str | None, seconds: float, seed: int, device: str,
    output: Path | None, input: tuple[str, ...], dim: dict[str, int], trust_pickle: bool,
) -> None:  # fmt: skip
    """Run --stages on MODEL, which is the teacher of all trainings, and compile what is left.

    Sizes of --dim are fixed for compiling only, so that trainings have batches.
    """
    from dsopt import api
    from dsopt.compression import compress

    if strict:
        raise UsageError("DS0909", "--strict is an option of dsopt compile", fix="Leave it out.")
    chosen = choose_target(target, board, boards, ram, flash, instructions)
    place = output or default_output(model, chosen.name)
    with console.bars() as progress:
        program = api.load_model(model, input, {}, trust_pickle)
        found = compress(
            program, chosen, stages, data, validation=validation, labels=labels, metric=metric, batch_size=batch_size,
            folder=folder, dims=dim, passes=passes, timing_seconds=seconds, seed=seed, device=device, progress=progress,
        )  # fmt: skip
        found.artifact.save(place)
    console.result(
        {"artifact": str(place), **found.as_dict()}, f"{found.table()}\n{pairs([('artifact', place), ('target', chosen.name)])}"
    )  # fmt: skip
