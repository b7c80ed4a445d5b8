"""The sections of the page about a program on a chip: what each layer costs, when memory is used, and what was allowed."""

from __future__ import annotations

from dsopt.report.chip import Chip, ChipLayer
from dsopt.report.markup import Cell, html, paragraph, percent, plain, section, table
from dsopt.report.memory_map import memory_map
from dsopt.report.timeline import bars

_MOST_ROWS = 2000
_BAR_WIDTH, _BAR_HEIGHT, _ROW, _NAMES = 560, 16, 26, 110


def chip_sections(chip: Chip | None) -> str:
    """Return the sections; "" for what runs on no chip."""
    if chip is None:
        return ""
    layers = chip.layers
    names = [f"{each.function} ({each.layer})" if each.layer else each.function for each in layers]
    counts = [each.instructions or 0 for each in layers]
    live = [each.live_bytes for each in layers]
    return "".join(
        [
            section("Budgets", _budgets(chip)),
            section(
                "Layers on the chip", _patches(chip), _words(chip),
                bars("Instructions of each layer in one run", "instructions", names, counts, is_sum=True),
                bars("Bytes of values that exist while each layer runs", "bytes", names, live, is_sum=False),
                _layers(layers),
            ),
            section("Kernels that were measured", _candidates(layers)),
            section("Memory over time", memory_map(chip)),
        ]
    )  # fmt: skip


def _budgets(chip: Chip) -> str:
    """Draw a bar for what is needed of each limit, and a line at the limit itself."""
    if not chip.budgets:
        return ""
    height = _ROW * len(chip.budgets) + 8
    parts = [
        f'<svg viewBox="0 0 {_NAMES + _BAR_WIDTH + 250} {height}" role="img" aria-label="What is needed of each limit">'
    ]
    for number, each in enumerate(chip.budgets):
        top = 4 + _ROW * number
        share = each.need / each.limit if each.limit else 1.0
        words = f"{plain(each.need)} of {plain(each.limit)} {each.unit}, {plain(percent(share))}"
        kind = "bar" if share <= 1 else "beyond"
        width, limit = _BAR_WIDTH * min(share, 1.0), _NAMES + _BAR_WIDTH
        parts += [
            f'<text x="{_NAMES - 8}" y="{top + 12}" text-anchor="end">{html(each.name)}</text>',
            f'<rect class="{kind}" x="{_NAMES}" y="{top}" width="{max(width, 1.0):.1f}" height="{_BAR_HEIGHT}">'
            f"<title>{html(f'{each.name}: {words}')}</title></rect>",
            f'<line class="limit" x1="{limit}" y1="{top - 2}" x2="{limit}" y2="{top + _BAR_HEIGHT + 2}"/>',
            f'<text x="{limit + 8}" y="{top + 12}">{html(words)}</text>',
        ]
    return '<div class="wide chart">' + "\n".join([*parts, "</svg></div>\n"])


def _patches(chip: Chip) -> str:
    found = chip.patches
    if found is None:
        return ""
    pieces = (
        f"{plain(found.rows * found.columns)} patches, in {plain(found.rows)} rows and {plain(found.columns)} columns"
    )
    if found.is_cascade:
        columns = f"{plain(found.columns)} columns of " if found.columns > 1 else ""
        again = "only borders between columns are computed twice" if columns else "none is computed twice"
        return paragraph(
            f"The layers up to {found.until} run in {columns}{plain(found.rows)} strips: of each value only some rows are in memory "
            f"at a time. Rows that the next strip needs again are kept, and {again}."
        )
    again = f"What patches share is computed again: a run takes {plain(found.multiply_adds)} multiply-adds."
    return paragraph(
        f"The layers up to {found.until} run in {pieces}: whole, their values do not fit into RAM. {again}"
    )


def _words(chip: Chip) -> str:
    text = "Layers are numbered in the order in which they run. Live bytes are those of the arena that hold values meanwhile."
    if any(each.instructions is not None for each in chip.layers):
        text += " Instructions are exact, those of one run on an emulated core, with what a layer calls."
    if any(each.estimated_cycles is not None for each in chip.layers):
        text += " Cycles are an estimate from them by a table of the Cortex-M4, and no measurement."
    return paragraph(text) if chip.layers else ""


def _layers(layers: tuple[ChipLayer, ...]) -> str:
    whole = sum(each.instructions or 0 for each in layers)
    rows: list[list[Cell]] = [
        [
            number, each.function, each.layer, each.kernel, each.why_generic, each.multiply_adds, each.instructions,
            percent(each.instructions / whole) if each.instructions is not None and whole else None, each.estimated_cycles,
            each.code_bytes, each.weight_bytes, each.live_bytes,
        ]
        for number, each in enumerate(layers[:_MOST_ROWS])
    ]  # fmt: skip
    header = [
        "", "function", "layer", "kernel", "why it is generic", "multiply-adds", "instructions", "share", "cycles (estimate)",
        "code bytes", "weight bytes", "live bytes",
    ]  # fmt: skip
    more = len(layers) - _MOST_ROWS
    note = paragraph(f"{plain(more)} more are in the manifest.") if more > 0 else ""
    return table(header, rows, [0, *range(5, len(header))]) + note


def _candidates(layers: tuple[ChipLayer, ...]) -> str:
    """Return a row for each way to write a layer, the one that was chosen marked."""
    rows: list[list[Cell]] = [
        [number, each.function, each.layer, way.kernel, way.instructions, way.bytes, "chosen" if way.chosen else ""]
        for number, each in enumerate(layers)
        for way in each.candidates
    ]
    words = "Each way to write a layer, alone on the emulated core. Bytes are of its code and weights; layers may share some."
    header = ["", "function", "layer", "kernel", "instructions", "bytes", ""]
    return paragraph(words) + table(header, rows[:_MOST_ROWS], [0, 4, 5]) if rows else ""
