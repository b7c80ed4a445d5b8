"""dsopt targets: what can be compiled for."""

from __future__ import annotations

import click

from dsopt.cli.options import speaking
from dsopt.cli.output import Output, table


@click.command(short_help="List the targets.")
@speaking
def command(console: Output) -> None:
    """List the targets by name, with what is special about each."""
    from dsopt.target import target_names

    found = [{"name": name, "about": _about(name)} for name in target_names()]
    console.result(
        {"targets": found}, table(["target", "what it is"], [(each["name"], each["about"]) for each in found])
    )


def _about(name: str) -> str:
    from dsopt.target import CORES, DEFAULT_CUDA_ARCHS

    kind, _, rest = name.partition(":")
    if kind == "cpu":
        return "this computer, through ONNX Runtime"
    if kind == "cuda":
        return f"NVIDIA GPUs of {rest}" if rest else f"NVIDIA GPUs: {', '.join(DEFAULT_CUDA_ARCHS)} and later ones"
    core = CORES[rest]
    units = [word for word, has in (("FPU", core.has_fpu), ("DSP", core.has_dsp), ("MVE", core.has_mve)) if has]
    parts = [
        "with " + ", ".join(units) if units else "without FPU",
        "runs on " + " and ".join(core.simulators) if core.simulators else "",
        core.note,
    ]
    return "; ".join(part for part in parts if part)
