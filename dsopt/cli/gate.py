"""The options of dsopt compile that judge accuracy, and what they say when it is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dsopt.cli.output import table

if TYPE_CHECKING:
    from dsopt.accuracy.gate import Gate
    from dsopt.accuracy.judge import Verdict
    from dsopt.passes.base import PassRecord

Function = TypeVar("Function", bound=Callable[..., Any])

_FALLBACKS = ("none", "int16", "float")


def judging(function: Function) -> Function:
    """Add --metric, --max-drop, --fallback, --reference, --labels and --calibration-samples."""
    for option in (
        click.option(
            "--reference", metavar="MODEL", help="The float model to compare with, where the given one was quantised before.",
        ),
        click.option(
            "--calibration-samples", type=click.IntRange(1), default=100, show_default=True,
            help="How many samples of --data calibrate, drawn by --seed; the rest are judged.",
        ),
        click.option("--labels", metavar="NAME", help='The array of --data that holds the labels; by default "labels".'),
        click.option(
            "--fallback", type=click.Choice(_FALLBACKS), default="int16", show_default=True,
            help="How far the most sensitive layers may be raised where the drop is too large.",
        ),
        click.option(
            "--max-drop", type=click.FloatRange(0),
            help="Fail if the generated code is worse than the float model by more: in points, or percent of an error.",
        ),
        click.option(
            "--metric", help="Judge generated code on --data by accuracy, rmse, mae, agreement or snr; by default as the labels are."
        ),
    ):  # fmt: skip
        function = option(function)
    return function


def make_gate(
    metric: str | None, max_drop: float | None, fallback: str, labels: str | None, reference: str | None, trust_pickle: bool
) -> Gate | None:  # fmt: skip
    """Return the gate that was asked for; None if nothing asks for one. Without a largest drop it judges, and never fails."""
    from dsopt import api
    from dsopt.accuracy.gate import Gate
    from dsopt.accuracy.metrics import find_metric
    from dsopt.accuracy.samples import LABELS

    if metric is None and max_drop is None and labels is None and reference is None:
        return None
    found = None if metric is None else find_metric(metric)  # an unknown one is refused before any work
    against = None if reference is None else api.load_model(reference, trust_pickle=trust_pickle)
    return Gate(float("inf") if max_drop is None else max_drop, found, fallback, labels or LABELS, against)


def notes_text(records: tuple[PassRecord, ...]) -> str:
    """Return what passes noted of the model, and what the quantising ones left in float and why."""
    lines: list[str] = []
    for record in records:
        if record.name.startswith("quantize"):
            lines += [f"stays float  {skip}" for skip in record.skips]
        lines += [f"note         {note}" for note in record.notes]
    return "".join(f"{line}\n" for line in lines)


def verdict_text(verdict: Verdict) -> str:
    """Return the table of layers where the search had to measure them: the most sensitive first, and what was raised."""
    rows = [(each.snr, each.node, each.op, each.layer, verdict.kept.get(each.node, "")) for each in verdict.layers]
    if not rows:
        return ""
    head = "Signal over noise of the outputs if one operator alone is rounded, and what was raised for the metric to hold:\n"
    return head + table(["dB", "operator", "kind", "layer", "raised to"], rows)
