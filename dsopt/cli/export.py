"""dsopt export: a model in another format, or an artifact as a project of a build system."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from dsopt.cli.options import artifact_path, reading_models, speaking
from dsopt.cli.output import Output, pairs
from dsopt.errors import UsageError

_MODEL = "model.onnx"
_KINDS = ("cmake", "make", "arduino", "platformio", "zephyr", "espidf", "cmsis-pack")


@click.command(short_help="Write a model in another format, or an artifact as a project.")
@click.argument("model", metavar="MODEL|ARTIFACT")
@click.option("--format", type=click.Choice(["onnx"]), default="onnx", show_default=True, help="The format of a model.")
@click.option(
    "--project", type=click.Choice(_KINDS), help="Write the C files of an artifact as a project of this kind."
)
@click.option(
    "--output", "-o", required=True, type=click.Path(path_type=Path), help="The file, or the new folder, to write."
)
@click.option("--passes", default="", help="Passes to run before, as for dsopt compile; none by default.")
@click.option(
    "--data", type=click.Path(path_type=Path), help="Inputs for calibration and for the check, as for dsopt compile."
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    default=1e-4,
    show_default=True,
    help="Largest max|a-b| / max|b| of an output.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the inputs that the check uses.")
@reading_models
@speaking
def command(
    console: Output, model: str, format: str, project: str | None, passes: str, data: Path | None, tolerance: float, seed: int,
    input: tuple[str, ...], dim: dict[str, int], trust_pickle: bool, output: Path,
) -> None:  # fmt: skip
    """Write MODEL as .onnx, checked against the model. Weights above 1.5 GB go to a file beside it.

    What --passes quantise is written as QuantizeLinear and DequantizeLinear.

    With --project, write what dsopt compile made for a microcontroller as a folder that a build system opens: the sources, an
    example that runs them on test vectors, and a README that says what was checked. Nothing that is there is overwritten.
    """
    if project is not None:
        _write_project(console, model, project, output)
        return
    from dsopt import api
    from dsopt.artifact.writing import replace_file

    with console.bars() as progress:
        program = api.load_model(model, input, dim, trust_pickle)
        build = api.build(program, "cpu", passes, data, tolerance=tolerance, seed=seed, progress=progress)
    written = {output: build.artifact.files[_MODEL]}
    # The graph names the file of its weights, so that one keeps its name.
    written |= {
        output.parent / name: content for name, content in build.artifact.files.items() if name.startswith(f"{_MODEL}.")
    }
    for path, content in written.items():
        replace_file(path, content)
    document = {
        "model": model, "format": format, "files": {str(path): len(content) for path, content in written.items()},
        "max_relative_error": build.agreement.max_relative_error,
    }  # fmt: skip
    error = build.agreement.max_relative_error
    text = pairs(
        [*((str(path), f"{len(content):,} bytes") for path, content in written.items()), ("relative error", error)]
    )
    console.result(document, text)


def _write_project(console: Output, artifact: str, kind: str, folder: Path) -> None:
    from dsopt.artifact import load_artifact
    from dsopt.projects import export_project

    context = click.get_current_context()
    of_models = ("format", "passes", "data", "tolerance", "seed", "input", "dim", "trust_pickle")
    given = [name for name in of_models if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if given:
        flag = "--" + given[0].replace("_", "-")
        raise UsageError(
            "DS0909",
            f"{flag} is about a model, and --project takes an artifact as it is",
            fix="Give it to dsopt compile.",
        )
    files = export_project(load_artifact(artifact_path(artifact)), kind, folder)
    document = {"artifact": artifact, "project": kind, "folder": str(folder), "files": files}
    console.result(document, pairs([("project", folder), ("kind", kind), *_rows(files)]))


def _rows(files: dict[str, int]) -> list[tuple[str, str]]:
    return [(name, f"{count:,} bytes") for name, count in files.items()]
