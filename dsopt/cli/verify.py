"""dsopt verify: does an artifact give what its model gives, and which layer is the first that does not?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dsopt.cli.options import reading_models, speaking
from dsopt.cli.output import Output, table

if TYPE_CHECKING:
    from dsopt.measure.verify import OutputAgreement, Verification


@click.command(short_help="Compare an artifact with its model.")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--against", required=True, metavar="MODEL", help="The model that it was compiled from.")
@click.option(
    "--inputs",
    default="random",
    show_default=True,
    metavar="FILE.npz|random",
    help="An .npz with an array for each input, or random ones.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="What the artifact was compiled with, if passes measured on it: they do so again.",
)
@click.option("--bisect", is_flag=True, help="Compare layer by layer and name the first that differs.")
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    default=1e-4,
    show_default=True,
    help="Largest max|a-b| / max|b| of an output.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of random inputs.")
@reading_models
@speaking
def command(
    console: Output, artifact: Path, against: str, inputs: str, data: Path | None, bisect: bool, tolerance: float, seed: int,
    input: tuple[str, ...], dim: dict[str, int], trust_pickle: bool,
) -> int:  # fmt: skip
    """Run ARTIFACT and its model on the same inputs and compare every output. Exits with 1 if they differ.

    A quantised artifact is compared with the quantised program, and one whose passes change what the model gives (prune, sparse-attention)
    with the model after these passes: both are made again from the model and --data.
    """
    from dsopt import api
    from dsopt.artifact import load_artifact
    from dsopt.feeds import read_npz, split_feeds
    from dsopt.measure.verify import verify

    opened = load_artifact(artifact)
    feeds = None if inputs == "random" else split_feeds(read_npz(inputs), opened.manifest["inputs"])
    with console.bars() as progress:
        progress(0, 1, "reading")
        program = api.load_model(against, input, {}, trust_pickle)
        found = verify(
            opened,
            program,
            feeds,
            sizes=dim,
            bisect=bisect,
            tolerance=tolerance,
            seed=seed,
            data=data,
            progress=progress,
        )
    console.result(
        {"artifact": str(artifact), "model": against, **found.as_dict()},
        _text(found, bisect, bool(opened.manifest.get("patches"))),
    )
    return 0 if found.agrees else 1


def _verdict(output: OutputAgreement, tolerance: float) -> str:
    if output.relative_error <= tolerance:
        return output.note or "agrees"
    if output.own_error is not None:
        return f"agrees as far as float32 goes: torch itself is off by {output.own_error:.2g}"
    if output.agrees(tolerance):
        return f"agrees to {output.rounding:.2f} of what quantisation changes"
    return f"DIFFERS: {output.note}" if output.note else "DIFFERS"


def _text(found: Verification, bisect: bool, is_patched: bool) -> str:
    rows = [
        (each.name, each.relative_error, each.largest_difference, _verdict(each, found.tolerance))
        for each in found.outputs
    ]  # fmt: skip
    text = table(["output", "max|a-b| / max|b|", "max|a-b|", ""], rows)
    if bisect:
        text += "\n" + table(
            ["layer", "operator", "max|a-b| / max|b|"],
            [(e.layer or e.node, e.op, e.relative_error) for e in found.layers],
        )
        first = found.first_difference
        if first is not None:
            place = "".join(f" {word} {name}" for word, name in (("in", first.layer), ("at", first.source)) if name)
            text += f"\nThe first layer that differs is %{first.node} {first.op}{place}: relative error {first.relative_error:.3g}.\n"
        else:
            text += f"\nNo layer differs by more than {found.tolerance:g}.\n"
        if is_patched:
            text += "Layers that run in patches are never whole in memory, and compared by what is made of them.\n"
    verdict = "agrees with" if found.agrees else "differs from"
    if found.agrees and found.outputs and all(each.note for each in found.outputs):
        verdict = "gave no number to compare with"
    runs = "1 run" if found.runs == 1 else f"{found.runs} runs"
    if found.change:
        moved = ", ".join(f"{name} by {error:.3g}" for name, error in found.change.items())
        text += f"\n{', '.join(found.changed_by)} moved {moved} (max|a-b| / max|b|) from the model.\n"
    return text + f"\n{found.target} {verdict} {found.against} on {runs} (tolerance {found.tolerance:g}).\n"
