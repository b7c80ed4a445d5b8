"""One page about an artifact: verdict, layers, histograms, memory. It needs no script, no network and no other file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsopt.report.chip import read_chip
from dsopt.report.chip_sections import chip_sections
from dsopt.report.entries import Accuracy, RoundedValue, read_accuracy, read_values
from dsopt.report.histogram import histogram
from dsopt.report.markup import Cell, Markup, clean, html, paragraph, percent, plain, section, table
from dsopt.report.style import STYLE

_MOST_LINES = 2000
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""What a browser may load for the page: nothing."""


def page(name: str, manifest: Mapping[str, Any]) -> str:
    """Return the page as HTML. manifest: as read from an artifact, whose texts may be anybody's.

    Raises ArtifactError if what it says of quantisation, or of layers and memory on a chip, is malformed.
    """
    values, accuracy, chip = read_values(manifest), read_accuracy(manifest), read_chip(manifest)
    title = f"{clean(name)} for {clean(str(manifest['target']))}"
    body = "".join(
        [
            f"<h1>{html(title)}</h1>\n",
            paragraph(
                "A report of dsopt on one artifact: what it holds, what it costs, and what quantisation did to it.",
                "faint",
            ),
            _verdict(accuracy),
            section("Overview", _overview(manifest)),
            chip_sections(chip),
            section("Sensitivity", _sensitivity(accuracy)),
            section("Rounded values and weights", _values_text(values), _values(values)),
            section("Histograms", _key(values), _figures(values)),
            section("What passes left alone or noted", _notes(manifest)),
            section("Files", _files(manifest)),
        ]
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{html(_POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


# ---- accuracy ----


def _verdict(accuracy: Accuracy | None) -> str:
    if accuracy is None:
        return ""
    is_asked = accuracy.max_drop is not None
    word = (
        "Accuracy gate passed"
        if accuracy.passes and is_asked
        else "Accuracy"
        if accuracy.passes
        else "Accuracy gate missed"
    )
    drop = "infinite" if accuracy.drop is None else f"{plain(accuracy.drop)} {accuracy.unit}"
    allowed = f", and {plain(accuracy.max_drop)} are allowed" if is_asked else ""
    samples = (
        f"{plain(accuracy.samples)} samples, {'none' if accuracy.is_held_out else 'some'} of which it was calibrated on"
    )
    raised = sum(bool(each.raised_to) for each in accuracy.layers)
    more = f" {raised} of {len(accuracy.layers)} operators have a higher precision." if raised else ""
    text = (
        f"{accuracy.metric} {plain(accuracy.value)} against {plain(accuracy.float_value)} in float: a drop of {drop}{allowed}. "
        f"Judged on {samples}, by {accuracy.place}.{more}"
    )
    kind = "verdict" if accuracy.passes else "verdict missed"
    return f'<p class="{kind}"><b>{html(word)}.</b> {html(text)}</p>\n'


def _sensitivity(accuracy: Accuracy | None) -> str:
    if accuracy is None or not accuracy.layers:
        return ""
    rows: list[list[Cell]] = [
        [round(each.snr, 2), each.node, each.op, each.layer, each.raised_to] for each in accuracy.layers
    ]
    text = "Signal over noise of the outputs if this operator alone is rounded, in decibels: the first hurts most."
    return paragraph(text) + table(["dB", "operator", "kind", "layer", "raised to"], rows, [0])


# ---- what the artifact is ----


def _overview(manifest: Mapping[str, Any]) -> str:
    check = manifest.get("check")
    check = check if isinstance(check, Mapping) else {}
    place = str(check.get("place", "")) if check.get("checked") is True else ""
    why_not = f"not run: {check.get('why_unchecked', '')}" if check.get("checked") is False else ""
    calibration = manifest.get("calibration")
    samples = calibration.get("samples") if isinstance(calibration, Mapping) else None
    rows: list[list[Cell]] = [["target", str(manifest["target"])]]
    for kind in ("input", "output"):
        rows += [[f"{kind} {entry['name']}", _tensor(entry)] for entry in manifest[f"{kind}s"]]
    rows.append(["bytes of files", sum(_bytes(entry) for entry in manifest.get("files", {}).values())])
    memory = sorted(manifest.get("memory", {}).items())
    rows += [[key.replace("_", " "), value] for key, value in memory if _is_whole(value)]
    rows += [["checked", f"by {place}"]] if place else []
    rows += [["checked", why_not]] if why_not else []
    rows += [["calibrated on", f"{samples:,} samples"]] if _is_whole(samples) else []
    return table(["", ""], rows)


def _is_whole(value: object) -> bool:
    return type(value) is int and abs(value) < 1 << 62


def _bytes(entry: object) -> int:
    found = entry.get("bytes") if isinstance(entry, Mapping) else 0
    return found if isinstance(found, int) else 0


def _tensor(entry: Mapping[str, Any]) -> str:
    return f"{entry['dtype']}[{', '.join(str(size) for size in entry['shape'])}]"


def _notes(manifest: Mapping[str, Any]) -> str:
    rows: list[list[Cell]] = []
    for record in manifest.get("passes", ()):
        for key, word in (("skips", "left"), ("notes", "noted")):
            found = record.get(key, ())
            lines = found if isinstance(found, (list, tuple)) else ()
            rows += [[str(record.get("name", "")), word, str(line)] for line in lines]
    more = paragraph(f"{len(rows) - _MOST_LINES:,} more are in the manifest.") if len(rows) > _MOST_LINES else ""
    return table(["pass", "", "where and why"], rows[:_MOST_LINES]) + more


def _files(manifest: Mapping[str, Any]) -> str:
    rows: list[list[Cell]] = [[name, _bytes(entry)] for name, entry in sorted(manifest.get("files", {}).items())]
    return table(["file", "bytes"], rows, [1])


# ---- quantisation ----


def _values_text(values: tuple[RoundedValue, ...]) -> str:
    if not values:
        return ""
    return paragraph(
        "A number is written as scale × (integer − zero point). Saturated is the share of elements that the grid cannot hold. "
        "Signal over noise is measured against the float model, with all that was rounded before."
    )


def _values(values: tuple[RoundedValue, ...]) -> str:
    rows: list[list[Cell]] = [
        [
            _link(number, each), each.op, each.kind, each.bits, _pair(*each.scale), each.zero_point, _pair(*each.observed, True),
            _pair(*each.grid, True), percent(each.saturated), each.snr,
        ]
        for number, each in enumerate(values)
    ]  # fmt: skip
    header = ["layer", "operator", "what", "bits", "scale", "zero point", "observed", "grid", "saturated", "dB"]
    return table(header, rows, range(3, len(header)))


def _link(number: int, value: RoundedValue) -> Cell:
    return Markup(f'<a href="#v{number}">{html(value.name)}</a>') if any(value.histogram) else value.name


def _pair(low: float, high: float, is_range: bool = False) -> str:
    return plain(low) if low == high and not is_range else f"{plain(low)} to {plain(high)}"


def _key(values: tuple[RoundedValue, ...]) -> str:
    if not any(any(each.histogram) for each in values):
        return ""
    return (
        '<p><span class="key key-bar"></span>within the grid<span class="key key-beyond"></span>beyond it, and cut. The bracket under '
        "the bars is what the grid can hold. Heights are square roots of counts, so that rare values are seen; "
        "of weights, the stored integers are counted.</p>\n"
    )


def _figures(values: tuple[RoundedValue, ...]) -> str:
    figures = []
    for number, each in enumerate(values):
        drawn = histogram(each)
        if not drawn:
            continue
        saturated = "" if each.saturated is None else f", {plain(percent(each.saturated))} saturated"
        snr = "" if each.snr is None else f", {plain(each.snr)} dB"
        caption = f"<b>{html(each.name)}</b><br>{html(f'{each.op}, {each.kind}, {each.bits} bits{saturated}{snr}')}"
        figures.append(f'<figure id="v{number}"><figcaption>{caption}</figcaption>\n{drawn}</figure>\n')
    return f'<div class="figures">\n{"".join(figures)}</div>\n' if figures else ""
