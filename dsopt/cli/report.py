"""dsopt report: a page about an artifact."""

from __future__ import annotations

from pathlib import Path

import click

from dsopt.cli.options import speaking
from dsopt.cli.output import Output, pairs


@click.command(short_help="Write a page about an artifact, with the histograms of what is quantised.")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--output", "-o", type=click.Path(dir_okay=False, path_type=Path), default=Path("report.html"), show_default=True,
    help="The file to write.",
)  # fmt: skip
@speaking
def command(console: Output, artifact: Path, output: Path) -> None:
    """Write one HTML file about ARTIFACT: accuracy, layers, ranges, histograms, memory. It needs neither scripts nor a network."""
    from dsopt.artifact import load_artifact
    from dsopt.artifact.writing import replace_file
    from dsopt.report.entries import read_accuracy, read_values
    from dsopt.report.page import page

    opened = load_artifact(artifact)
    content = page(artifact.resolve().name, opened.manifest).encode()
    replace_file(output, content)
    values, accuracy = read_values(opened.manifest), read_accuracy(opened.manifest)
    document = {
        "artifact": str(artifact), "report": str(output), "report_bytes": len(content), "rounded_values": len(values),
        "passes_gate": None if accuracy is None else accuracy.passes,
    }  # fmt: skip
    console.result(document, pairs([("report", output), ("bytes", len(content)), ("rounded values", len(values))]))
