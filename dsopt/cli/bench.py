"""dsopt bench: milliseconds, or instructions of an emulated core."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsopt.cli.layers import layer_rows, patches_text
from dsopt.cli.options import reading_models, speaking
from dsopt.cli.output import Output, pairs, table
from dsopt.errors import UsageError

if TYPE_CHECKING:
    from dsopt.measure.bench import Bench


@click.command(short_help="Time an artifact, or count its instructions.")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--layers", is_flag=True, help="Also show what each layer costs.")
@click.option(
    "--against",
    default="",
    metavar="PEER,...",
    help="Time these too, in turns: torch, onnxruntime (on torch's own export), inductor.",
)
@click.option("--model", help="The model: peers run it, and sizes that vary are those of its example.")
@click.option(
    "--inputs",
    default="random",
    show_default=True,
    metavar="FILE.npz|random",
    help="The first sample of an .npz, or random ones.",
)
@click.option("--threads", type=click.IntRange(1), help="Threads of the CPU; by default one for each core.")
@click.option("--seconds", type=click.FloatRange(0, 3600), default=3.0, show_default=True, help="How long to measure.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of random inputs.")
@reading_models
@speaking
def command(
    console: Output, artifact: Path, layers: bool, against: str, model: str | None, inputs: str, threads: int | None,
    seconds: float, seed: int, input: tuple[str, ...], dim: dict[str, int], trust_pickle: bool,
) -> None:  # fmt: skip
    """Measure ARTIFACT: p50, p90 and p99 in milliseconds, or the instructions of one run for a microcontroller."""
    from dsopt.artifact import load_artifact
    from dsopt.feeds import read_npz, split_feeds
    from dsopt.measure.bench import bench

    opened = load_artifact(artifact)
    peers = [name.strip() for name in against.split(",") if name.strip()]
    if peers and model is None:
        raise UsageError("DS0455", "peers run the model, and no model was given", fix="name it with --model")
    feeds = None if inputs == "random" else split_feeds(read_npz(inputs), opened.manifest["inputs"], limit=1)[0]
    program = None
    with console.bars() as progress:
        if model is not None:
            from dsopt import api

            progress(0, 1, "reading")
            program = api.load_model(model, input, {}, trust_pickle)
        found = bench(
            opened, program, peers, feeds=feeds, sizes=dim, layers=layers, threads=threads, seconds=seconds, seed=seed, progress=progress
        )  # fmt: skip
    console.result({"artifact": str(artifact), **found.as_dict()}, _text(found, opened.manifest))


def _text(found: Bench, manifest: Mapping[str, Any]) -> str:
    shapes = ", ".join(f"{name} {list(shape)}" for name, shape in found.shapes.items())
    text = pairs(
        [
            ("target", found.target),
            ("inputs", shapes),
            ("threads", found.threads),
            ("instructions", found.instructions),
            ("patches", patches_text(manifest)),
        ]
    )
    rows = [(each.name, each.runs, each.p50_ms, each.p90_ms, each.p99_ms) for each in found.timings]
    text += ("\n" if rows else "") + table(["", "runs", "p50 ms", "p90 ms", "p99 ms"], rows)
    ratios = [(f"dsopt / {each.peer}", each.ratio, each.low, each.high) for each in found.ratios]
    text += ("\n" if ratios else "") + table(["time of", "median ratio", "95 % from", "to"], ratios)
    if found.layers:
        text += "\n" + _layers(found, manifest)
    return text


def _layers(found: Bench, manifest: Mapping[str, Any]) -> str:
    if found.instructions is not None:
        return _counts(found, manifest)
    operators = {str(entry.get("node", "")): str(entry.get("op", "")) for entry in manifest.get("layers", ())}
    total = sum(each.seconds or 0.0 for each in found.layers) or 1.0
    seconds: dict[tuple[str, str], float] = {}
    for each in found.layers:
        place = (each.layer or each.node, operators.get(each.node, ""))
        seconds[place] = seconds.get(place, 0.0) + (each.seconds or 0.0)
    times = [(layer, op, taken * 1e3, f"{taken / total:.1%}") for (layer, op), taken in seconds.items()]
    return table(["layer", "operator", "ms", "share"], times)


def _counts(found: Bench, manifest: Mapping[str, Any]) -> str:
    whole = max(found.instructions or 0, 1)
    rows = [
        (each.layer, each.op, each.kernel, each.count, each.instructions, f"{(each.instructions or 0) / whole:.1%}")
        for each in layer_rows(manifest, [each.instructions for each in found.layers])
    ]
    header = ["layer", "operator", "kernel", "pieces", "instructions", "share"]
    used = [column for column in range(len(header)) if header[column] != "pieces" or manifest.get("patches")]
    return table([header[column] for column in used], [[row[column] for column in used] for row in rows])
