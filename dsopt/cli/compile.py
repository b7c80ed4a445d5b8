"""dsopt compile: model in, artifact out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from dsopt.cli.gate import judging, make_gate, notes_text, verdict_text
from dsopt.cli.layers import patches_text, port_text
from dsopt.cli.limits import choose_target, limiting
from dsopt.cli.options import reading_models, speaking
from dsopt.cli.output import Output, pairs, shortened, table
from dsopt.cli.strict import refuse_fallbacks, refuse_strict
from dsopt.errors import CheckError, UsageError

if TYPE_CHECKING:
    from dsopt.api import Build


@click.command(short_help="Compile a model for a target.")
@click.argument("model")
@limiting
@click.option(
    "--output", "-o", type=click.Path(path_type=Path),
    help="Folder to write, or one file if it ends in .dsopt. By default MODEL-TARGET in this folder.",
)  # fmt: skip
@click.option(
    "--passes",
    help='Passes instead of the target\'s own, for which "..." stands: "...,quantize{weights=4}"; see dsopt passes.',
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Inputs for calibration, for the check and for judging: an .npz with an array for each input, and labels.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    default=1e-4,
    show_default=True,
    help="Largest max|a-b| / max|b| of an output.",
)
@click.option(
    "--name", default="model", show_default=True, help="Prefix of the C functions of a microcontroller artifact."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything random.")
@click.option(
    "--io", type=click.Choice(["float", "int8"]), default="float", show_default=True,
    help="What a quantised model for a microcontroller takes and gives.",
)  # fmt: skip
@click.option(
    "--optimize", type=click.Choice(["speed", "balanced", "ram", "flash"]), default="balanced", show_default=True,
    help="What code for a microcontroller is made for.",
)  # fmt: skip
@click.option("--explain", is_flag=True, help="Say what each pass changed, and what it left alone and why.")
@click.option(
    "--dump", type=click.Path(file_okay=False, path_type=Path), help="Write the program after each pass to this folder."
)
@click.option(
    "--fail-on", multiple=True, type=click.Choice(["skip", "fallback"]),
    help="Fail if a pass left something alone (skip), or a layer runs in a slower place than the target's own (fallback).",
)  # fmt: skip
@judging
@reading_models
@speaking
def command(
    console: Output, model: str, target: str | None, board: str | None, boards: tuple[Path, ...], ram: str | None,
    flash: str | None, instructions: str | None, strict: bool, passes: str | None, data: Path | None,
    tolerance: float, name: str, seed: int, explain: bool, dump: Path | None, fail_on: tuple[str, ...],
    metric: str | None, max_drop: float | None, fallback: str, labels: str | None, reference: str | None, calibration_samples: int,
    io: Literal["float", "int8"], optimize: Literal["speed", "balanced", "ram", "flash"], input: tuple[str, ...],
    dim: dict[str, int], trust_pickle: bool, output: Path | None,
) -> None:  # fmt: skip
    """Compile MODEL: a .pt2, .onnx or .pt file, or package.module:factory.

    With --metric or --max-drop, the generated code is judged on --data against the float model. Exits with 1, and writes nothing, if
    no choice of layers to raise is good enough.
    """
    from dsopt import api

    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,100}", name):
        raise UsageError("DS0909", f"--name {name!r} is no C identifier", fix="Use letters, digits and underscores.")
    chosen = choose_target(target, board, boards, ram, flash, instructions)
    if strict:
        refuse_strict(chosen)
    gate = make_gate(metric, max_drop, fallback, labels, reference, trust_pickle)
    place = output or default_output(model, chosen.name)
    with console.bars() as progress:
        program = api.load_model(model, input, dim, trust_pickle)
        build = api.build(
            program,
            chosen,
            passes,
            data,
            name=name,
            seed=seed,
            tolerance=tolerance,
            dump=dump,
            progress=progress,
            gate=gate,
            calibration_samples=calibration_samples,
            io=io,
            optimize=optimize,
        )
        _refuse(build, fail_on)
        if strict:
            refuse_fallbacks(build)
        build.artifact.save(place)
    console.result(_document(build, place), _text(build, place, explain))


def default_output(model: str, target: str) -> Path:
    """Return "resnet50-cpu" for "models.resnet:resnet50" or "a/resnet50.pt2" and "cpu"."""
    stem = model.rpartition(":")[2] if ":" in model and not Path(model).exists() else Path(model).stem
    return Path(f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', stem)}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', target)}")


def fallbacks(build: Build) -> list[dict[str, Any]]:
    """Return the layers that run elsewhere than the target's own code, each with a "fallback": why."""
    return [dict(layer) for layer in build.artifact.manifest.get("layers", ()) if layer.get("fallback")]


def _refuse(build: Build, fail_on: Sequence[str]) -> None:
    found: list[str] = []
    if "skip" in fail_on:
        found += [f"{record.name}: {skip}" for record in build.records for skip in record.skips]
    if "fallback" in fail_on:
        found += [f"{layer.get('layer') or layer.get('node')}: {layer['fallback']}" for layer in fallbacks(build)]
    if found:
        raise CheckError(
            "DS0920", f"{len(found)} places of the program are not as --fail-on asks", where="\n".join(found),
            fix="change the model or the passes, or drop --fail-on; nothing was written",
        )  # fmt: skip


def _document(build: Build, place: Path) -> dict[str, Any]:
    manifest = build.artifact.manifest
    return {
        "artifact": str(place), "target": build.artifact.target,
        "inputs": manifest["inputs"], "outputs": manifest["outputs"],
        "artifact_bytes": _byte_count(build), "memory": manifest.get("memory", {}), "limits": manifest.get("limits", {}),
        "patches": manifest.get("patches"),
        "passes": [{**record.as_dict(), "seconds": record.seconds} for record in build.records],
        "fallbacks": fallbacks(build),
        "check": {**build.agreement.as_dict(), "max_relative_error": build.agreement.max_relative_error},
        "accuracy": None if build.verdict is None else build.verdict.as_dict(),
    }  # fmt: skip


def _text(build: Build, place: Path, explain: bool) -> str:
    rows = [
        (shortened(record.name), len(record.changes), len(record.skips),
         _change(record.nodes), _change(record.weight_bytes), f"{record.seconds:.2f}")
        for record in build.records
    ]  # fmt: skip
    text = table(["pass", "changes", "skips", "nodes", "weight bytes", "seconds"], rows)
    if explain:
        for record in build.records:
            lines = [
                *(f"  changed  {line}" for line in record.changes),
                *(f"  left     {line}" for line in record.skips),
            ]
            text += f"\n{record.name}\n" + "".join(f"{line}\n" for line in lines or ["  nothing to do"])
    for part in (notes_text(build.records), verdict_text(build.verdict) if build.verdict else ""):
        text += f"\n{part}" if part else ""
    text += "\n" if text else ""
    manifest = build.artifact.manifest
    memory, limits = manifest.get("memory", {}), manifest.get("limits", {})
    ports = [(kind, entry) for kind in ("input", "output") for entry in manifest[f"{kind}s"]]
    ports = ports if any("stored" in entry for _, entry in ports) else []
    agreement = build.agreement
    return text + pairs(
        [
            ("artifact", place), ("target", build.artifact.target), ("bytes", _byte_count(build)),
            *((f"{kind} {entry['name']}", port_text(entry)) for kind, entry in ports),
            *((key.replace("_", " "), value) for key, value in sorted(memory.items()) if isinstance(value, int)),
            *((f"{key.replace('_', ' ')} left", limit - memory[key]) for key, limit in sorted(limits.items()) if key in memory),
            ("patches", patches_text(manifest)),
            ("check", agreement.summary()), ("accuracy", build.verdict.summary() if build.verdict else ""),
            *((f"runs elsewhere: {layer.get('layer') or layer.get('node')}", layer["fallback"]) for layer in fallbacks(build)),
        ]
    )  # fmt: skip


def _change(counts: tuple[int, int]) -> str:
    before, after = counts
    return f"{before:,}" if before == after else f"{before:,} -> {after:,}"


def _byte_count(build: Build) -> int:
    return sum(len(content) for content in build.artifact.files.values())
