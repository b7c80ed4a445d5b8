"""HTML of text and numbers: every text is escaped, and every number has one form, so that the same artifact gives the same bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

_LONGEST = 400


@dataclass(frozen=True)
class Markup:
    """HTML that is finished; everything else is text and gets escaped."""

    text: str


Cell = Markup | str | int | float | bool | None


def clean(text: str) -> str:
    """Return a text with what cannot be shown replaced: control and direction characters, surrogates; and cut if it is very long."""
    shown = "".join(each if each.isprintable() else "\ufffd" for each in text[:_LONGEST])
    return shown + ("…" if len(text) > _LONGEST else "")


def html(value: Cell) -> str:
    """Return a value as HTML."""
    if isinstance(value, Markup):
        return value.text
    return escape(clean(plain(value)), quote=True)


def plain(value: Cell) -> str:
    """Return a value as text: whole numbers with thousands separated, others with four digits."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value.text if isinstance(value, Markup) else value


def percent(share: float | None) -> Cell:
    """Return a share of 0 to 1 in percent; what is more than nothing never looks like nothing."""
    if share is None:
        return None
    return "0 %" if share == 0 else "< 0.001 %" if share < 1e-5 else f"{100 * share:.3g} %"


def table(header: Sequence[str], rows: Iterable[Sequence[Cell]], numbers: Sequence[int] = ()) -> str:
    """Return a table that scrolls sideways on narrow screens. numbers: the columns to set to the right; "" without rows."""
    lines = [
        "<tr>" + "".join(f"<td{_side(n, numbers)}>{html(cell)}</td>" for n, cell in enumerate(row)) + "</tr>"
        for row in rows
    ]
    if not lines:
        return ""
    head = "".join(f'<th scope="col"{_side(n, numbers)}>{html(name)}</th>' for n, name in enumerate(header))
    body = "\n".join(lines)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n'


def _side(column: int, numbers: Sequence[int]) -> str:
    return ' class="number"' if column in numbers else ""


def section(title: str, *parts: str) -> str:
    """Return a section; "" where it would be empty."""
    body = "".join(part for part in parts if part)
    return f"<section>\n<h2>{html(title)}</h2>\n{body}</section>\n" if body else ""


def paragraph(text: Cell, kind: str = "") -> str:
    """Return a paragraph."""
    return f"<p{f' class={kind!r}' if kind else ''}>{html(text)}</p>\n"
