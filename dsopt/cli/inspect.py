"""dsopt inspect: what a model holds and what keeps a target from running it, or what an artifact holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsopt.cli.layers import layer_rows, patches_text, port_text
from dsopt.cli.options import reading_models, speaking
from dsopt.cli.output import Output, pairs, table
from dsopt.errors import UsageError

if TYPE_CHECKING:
    from dsopt.artifact import Artifact
    from dsopt.measure.inspect import Inspection


@click.command(short_help="Show a model's layers, sizes and blockers, or what an artifact holds.")
@click.argument("model")
@click.option("--target", "-t", help="Also list everything that this target cannot run.")
@click.option("--text", is_flag=True, help="Show the program itself, one line an operator.")
@click.option("--groups", is_flag=True, help="Show which channels can be pruned together, and what keeps the others.")
@reading_models
@speaking
def command(
    console: Output, model: str, target: str | None, text: bool, groups: bool, input: tuple[str, ...], dim: dict[str, int],
    trust_pickle: bool,
) -> int:  # fmt: skip
    """Show what MODEL holds: layers, shapes, parameters, multiply-adds; with --target all blockers at once. Or an artifact's content.

    Exits with 3 if the target cannot run the model.
    """
    from dsopt.artifact.reading import is_artifact

    if is_artifact(Path(model)):
        if target is not None or text or groups:
            raise UsageError(
                "DS0909",
                f"{model} is an artifact, which is compiled already",
                fix="--target, --text and --groups are for models",
            )
        return _show_artifact(console, model)
    from dsopt import api
    from dsopt.measure.inspect import inspect
    from dsopt.target import parse_target

    chosen = None if target is None else parse_target(target)
    with console.bars() as progress:
        progress(0, 1, "reading")
        program = api.load_model(model, input, dim, trust_pickle)
        if groups:
            return _show_groups(console, model, program)
        found = inspect(program, chosen)
    console.result({"model": model, **found.as_dict()}, program.text() if text else _model_text(found))
    return 3 if found.blockers else 0


def _show_groups(console: Output, model: str, program: Any) -> int:
    from dsopt.passes.prune.report import report_groups, shortened

    found = report_groups(program)
    free, pinned = [each for each in found if not each.pinned], [each for each in found if each.pinned]
    text = table(
        ["channels of", "count", "the first is", "parameters each", "multiply-adds each", "layers"],
        [
            (each.name, each.size, each.first, each.parameters, each.multiply_adds, shortened(each.layers))
            for each in free
        ],
    )
    text = text if free else "No channels can be pruned.\n"
    kept = table(["kept channels of", "count", "by"], [(each.name, each.size, each.pinned) for each in pinned])
    console.result(
        {"model": model, "groups": [each.as_dict() for each in found]}, text + (f"\n{kept}" if pinned else "")
    )
    return 0


def _model_text(found: Inspection) -> str:
    rows = [(each.layer, each.op, each.type, each.parameters, each.multiply_adds, each.source) for each in found.layers]
    rows.append(("total", "", "", found.parameters, found.multiply_adds, ""))
    head = pairs(
        [
            *((f"input {name}", kind) for name, kind in found.inputs),
            *((f"state {name}", kind) for name, kind in found.states),
            *((f"output {name}", kind) for name, kind in found.outputs),
            *((f"size {name}", _range(*bounds)) for name, bounds in found.dims.items()),
            ("weight bytes", found.weight_bytes),
        ]
    )
    text = head + "\n" + table(["layer", "operator", "result", "parameters", "multiply-adds", "source"], rows)
    if found.dims:
        text += (
            "Multiply-adds are those of the example: " + ", ".join(f"{n}={b[2]}" for n, b in found.dims.items()) + ".\n"
        )
    if found.blockers is None:
        return text
    if not found.blockers:
        return text + f"\n{found.target} can run all of it.\n"
    lines = "".join(f"  {blocker}\n" for blocker in found.blockers)
    return text + f"\n{found.target} cannot run {len(found.blockers)} of these:\n{lines}"


def _range(low: int, high: int | None, example: int) -> str:
    return f"{low} to {'any' if high is None else high}, {example} in the example"


def _show_artifact(console: Output, path: str) -> int:
    from dsopt.artifact import load_artifact

    artifact = load_artifact(path)
    for name in artifact.files:
        artifact.view(name)  # compares every hash
    manifest = artifact.manifest
    document = {"artifact": path, **{key: manifest[key] for key in sorted(manifest) if key not in ("kind", "schema")}}
    text = _artifact_text(artifact)  # also refuses what is malformed, for either form
    console.result(document, text)
    return 0


def _artifact_text(artifact: Artifact) -> str:
    manifest = artifact.manifest
    head = pairs(
        [
            ("target", artifact.target),
            *((f"input {entry['name']}", port_text(entry)) for entry in manifest["inputs"]),
            *((f"state {entry['name']}", port_text(entry)) for entry in manifest.get("states", ())),
            *((f"output {entry['name']}", port_text(entry)) for entry in manifest["outputs"]),
            *((f"size {name}", f"{entry['min']} to {entry['max'] or 'any'}") for name, entry in sorted(manifest.get("dims", {}).items())),
            *((key.replace("_", " "), value) for key, value in sorted(manifest.get("memory", {}).items()) if isinstance(value, int)),
            ("passes", ", ".join(str(entry.get("name", "")) for entry in manifest.get("passes", ()))),
            ("patches", patches_text(manifest)),
            ("accuracy", _accuracy_line(manifest)),
        ]
    )  # fmt: skip
    files = table(
        ["file", "bytes", "sha256"], [(n, e["bytes"], e["sha256"][:16]) for n, e in sorted(manifest["files"].items())]
    )
    return head + "\n" + _attention_text(manifest) + _layers_text(manifest) + _quantisation_text(manifest) + files


def _attention_text(manifest: Mapping[str, Any]) -> str:
    """Return what was decided on each attention: its work and its error, or why it is dense; "" where nobody asked."""
    from dsopt.report.fields import records, text

    lines: list[str] = []
    for entry in records(manifest, "passes"):
        if text(entry, "name").partition("{")[0] == "sparse-attention":
            for part in ("notes", "skips"):
                found = entry.get(part)
                lines += [str(line)[:1000] for line in found] if isinstance(found, (list, tuple)) else []
    return "".join(f"{line}\n" for line in lines) + ("\n" if lines else "")


def _quantisation_text(manifest: Mapping[str, Any]) -> str:
    """Return the tables of what is rounded and of what the search measured, "" for a float program."""
    from dsopt.report.entries import read_accuracy, read_values

    rows = [
        (each.name, each.kind, each.bits, _range_text(*each.scale), each.zero_point, _range_text(*each.observed, is_range=True),
         None if each.saturated is None else 100 * each.saturated, each.snr)
        for each in read_values(manifest)
    ]  # fmt: skip
    text = table(["rounded", "what", "bits", "scale", "zero point", "observed", "saturated %", "dB"], rows)
    accuracy = read_accuracy(manifest)
    layers = [] if accuracy is None else accuracy.layers
    measured = table(
        ["dB if rounded alone", "operator", "kind", "layer", "raised to"],
        [(each.snr, each.node, each.op, each.layer, each.raised_to) for each in layers],
    )
    return "".join(f"{part}\n" for part in (text, measured) if part)


def _range_text(low: float, high: float, is_range: bool = False) -> str:
    return f"{low:.4g}" if low == high and not is_range else f"{low:.4g} to {high:.4g}"


def _accuracy_line(manifest: Mapping[str, Any]) -> str:
    from dsopt.report.entries import read_accuracy

    found = read_accuracy(manifest)
    if found is None:
        return ""
    drop = "infinite" if found.drop is None else f"{found.drop:.3g} {found.unit}"
    allowed = "" if found.max_drop is None else f", {found.max_drop:g} allowed"
    held_out = "" if found.is_held_out else ", the ones it was calibrated on"
    return (
        f"{found.metric} {found.value:.4g} against {found.float_value:.4g} in float on {found.samples} samples{held_out}, "
        f"by {found.place}: a drop of {drop}{allowed}"
    )


def _layers_text(manifest: Mapping[str, Any]) -> str:
    is_patched = bool(manifest.get("patches"))
    rows = [
        (each.layer, each.op, each.kernel, each.shape, each.count if is_patched else None, each.multiply_adds, each.instructions)
        for each in layer_rows(manifest)
    ]  # fmt: skip
    header = ["layer", "operator", "kernel", "shape", "pieces", "multiply-adds", "instructions"]
    used = [column for column in range(len(header)) if any(row[column] not in (None, "") for row in rows)]
    text = table([header[column] for column in used], [[row[column] for column in used] for row in rows])
    return text + "\n" if text else ""
