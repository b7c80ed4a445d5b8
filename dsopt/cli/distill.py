"""dsopt distill: a teacher and data in, a smaller program that has learned from it out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsopt.cli.compile import default_output
from dsopt.cli.options import reading_models, speaking
from dsopt.cli.output import Output, pairs, table
from dsopt.errors import UsageError

if TYPE_CHECKING:
    from dsopt.compression.distilling import Distilled
    from dsopt.train.distill_loss import Teaching

_PARTS = ("labels", "logits", "hidden", "attention")
_CHECKPOINT = "distill.ckpt"


@click.command(short_help="Train a smaller model by a better one.")
@click.argument("teacher")
@click.argument("student", required=False)
@click.option("--every", type=click.IntRange(2), metavar="K", help="The student is every K-th layer of the teacher.")
@click.option(
    "--blocks",
    metavar="NAME|NAME",
    help="The student is these layers of the teacher, by their modules: layers.0|layers.5",
)
@click.option(
    "--passes",
    default="",
    help='Passes that make the student smaller before it trains: "prune{ratio=0.5}"; see dsopt passes.',
)
@click.option(
    "--data", required=True, type=click.Path(path_type=Path),
    help="What to train on: an .npz with an array for each input, and labels.",
)  # fmt: skip
@click.option(
    "--validation", type=click.Path(path_type=Path), help="An .npz of the same form to choose the best epoch by."
)
@click.option("--labels", default="labels", show_default=True, metavar="NAME", help="The array that holds the labels.")
@click.option(
    "--metric", help="Judge on --validation by accuracy, rmse, mae, agreement or snr; by default as the labels are."
)
@click.option(
    "--epochs", type=click.IntRange(1), default=3, show_default=True, help="How often to go through the data."
)
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Samples in a step.")
@click.option(
    "--lr", "learning_rate", type=click.FloatRange(0, min_open=True), default=1e-3, show_default=True,
    help="The largest learning rate of AdamW.",
)  # fmt: skip
@click.option(
    "--weight-decay", type=click.FloatRange(0), default=0.0, show_default=True, help="Of matrices and kernels."
)
@click.option("--temperature", type=float, default=2.0, show_default=True, help="At which logits are compared.")
@click.option(
    "--weights", default="labels=0.5,logits=0.5", show_default=True,
    help="Of the parts of the loss: labels, logits, hidden, attention; what is not named is 0.",
)  # fmt: skip
@click.option(
    "--pair", multiple=True, metavar="STUDENT=TEACHER",
    help="Modules to compare for hidden and attention, instead of layers. May be repeated.",
)  # fmt: skip
@click.option("--patience", type=click.IntRange(0), default=0, help="End after so many epochs without a better score.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything random.")
@click.option("--device", default="cpu", show_default=True, help="Where to train, as torch names it.")
@click.option(
    "--checkpoint", type=click.Path(file_okay=False, path_type=Path), help="A folder to go on from after a stop."
)
@click.option(
    "--resume", is_flag=True, help="Go on from --checkpoint; without it, a training that is there is left alone."
)
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The program to write. By default TEACHER-student.dsoptp.",
)
@reading_models
@speaking
def command(
    console: Output, teacher: str, student: str | None, every: int | None, blocks: str | None, passes: str, data: Path,
    validation: Path | None, labels: str, metric: str | None, epochs: int, batch_size: int, learning_rate: float,
    weight_decay: float, temperature: float, weights: str, pair: tuple[str, ...], patience: int, seed: int, device: str,
    checkpoint: Path | None, resume: bool, output: Path | None, input: tuple[str, ...], dim: dict[str, int], trust_pickle: bool,
) -> None:  # fmt: skip
    """Train a student by TEACHER, and write it as a program that the other commands take.

    The student is STUDENT, a model that takes the same inputs; or --every or --blocks of the teacher's layers; or what --passes leave of
    either. It learns from labels, from the teacher's logits, and, where --weights says so, from what its layers give and attend to.
    """
    from dsopt import api
    from dsopt.compression.distilling import distill_from

    teaching = _teaching(weights, temperature)
    compared = _pairs(pair)
    place = output or Path(f"{default_output(teacher, 'student')}.dsoptp")
    file = _checkpoint(checkpoint, resume)
    with console.bars() as progress:
        program = api.load_model(teacher, input, dim, trust_pickle)
        begin = None if student is None else api.load_model(student, input, dim, trust_pickle)
        found = distill_from(
            program, data, begin=begin, every=every, blocks=[name.strip() for name in (blocks or "").split("|") if name.strip()],
            passes=passes, teaching=teaching, validation=validation, labels=labels, metric=metric, batch_size=batch_size,
            seed=seed, progress=progress, epochs=epochs, learning_rate=learning_rate, weight_decay=weight_decay,
            pairs=compared or None, patience=patience, checkpoint=file, device=device,
        )  # fmt: skip
        found.result.program.save(place)
    console.result({"program": str(place), **found.as_dict()}, _text(found, place))


def _teaching(weights: str, temperature: float) -> Teaching:
    from dsopt.train.distill_loss import Teaching

    given: dict[str, float] = dict.fromkeys(_PARTS, 0.0)
    for part in weights.split(","):
        name, equals, value = (text.strip() for text in part.partition("="))
        try:
            number = float(value)
        except ValueError:
            number = None
        if not equals or name not in given or number is None:
            raise UsageError(
                "DS0909", f"--weights cannot be read at {part!r}",
                fix=f"Write it as labels=0.5,logits=0.5; the parts are {', '.join(_PARTS)}.",
            )  # fmt: skip
        given[name] = number
    return Teaching(**given, temperature=temperature)


def _pairs(texts: tuple[str, ...]) -> list[tuple[str, str]]:
    found = []
    for text in texts:
        mine, equals, theirs = (part.strip() for part in text.partition("="))
        if not equals or not mine or not theirs:
            raise UsageError(
                "DS0909", f"--pair {text!r} does not name two modules", fix="Write it as --pair layers.0=layers.3."
            )
        found.append((mine, theirs))
    return found


def _checkpoint(folder: Path | None, resume: bool) -> Path | None:
    """Return the file of the checkpoint. Raises UsageError if a training would be continued unasked."""
    if folder is None:
        if resume:
            raise UsageError("DS0909", "--resume needs --checkpoint", fix="Name the folder that the training wrote to.")
        return None
    file = folder / _CHECKPOINT
    if file.exists() and not resume:
        raise UsageError(
            "DS0909", f"{file} holds a training", fix="Go on from it with --resume, name another folder, or delete it."
        )
    return file


def _text(found: Distilled, place: Path) -> str:
    header = ["epoch", "loss", *([found.metric] if found.scores else [])]
    rows = [(each.number + 1, each.loss, *([each.score] if found.scores else [])) for each in found.result.history]
    text = table(header, rows) + "\n"
    (teacher, student), (before, after) = found.parameters, found.weight_bytes
    items: list[tuple[str, Any]] = [
        ("program", place),
        ("parameters", f"{teacher:,} -> {student:,}"),
        ("weight bytes", f"{before:,} -> {after:,}"),
    ]
    if found.scores:
        words = {"teacher": "of the teacher", "before": "of the student before", "after": "of the student"}
        items += [(f"{found.metric} {words[name]}", value) for name, value in found.scores.items()]
    return text + pairs(items)
