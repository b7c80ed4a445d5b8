"""dsopt export: a model in another format."""

from __future__ import annotations

from pathlib import Path

import click

from dsopt.cli.options import reading_models, speaking
from dsopt.cli.output import Output, pairs

_MODEL = "model.onnx"


@click.command(short_help="Write a model in another format.")
@click.argument("model")
@click.option("--format", type=click.Choice(["onnx"]), default="onnx", show_default=True, help="The format.")
@click.option(
    "--output", "-o", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The file to write."
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
    console: Output, model: str, format: str, passes: str, data: Path | None, tolerance: float, seed: int,
    input: tuple[str, ...], dim: dict[str, int], trust_pickle: bool, output: Path,
) -> None:  # fmt: skip
    """Write MODEL as .onnx, checked against the model. Weights above 1.5 GB go to a file beside it.

    What --passes quantise is written as QuantizeLinear and DequantizeLinear.
    """
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
