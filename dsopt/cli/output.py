"""Where things go: the result to stdout, as text or as one JSON document; notes and progress bars to stderr."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import click

from dsopt.cli.failures import output_failed

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Output:
    """How a command speaks. json: one document instead of text.  quiet: no notes and no bars.  verbose: every step as a note."""

    command: str
    json: bool = False
    quiet: bool = False
    verbose: bool = False

    def result(self, document: Mapping[str, Any], text: str) -> None:
        """Print a result: `document` with schema and command where JSON was asked for, else `text`."""
        if self.json:
            whole = {"schema": 1, "command": self.command, **_plain(document)}
            text = json.dumps(whole, indent=1, sort_keys=True, allow_nan=False)
        try:
            sys.stdout.write(text.rstrip("\n") + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise output_failed(error) from error

    def note(self, text: str) -> None:
        """Say something beside the result on stderr."""
        if not self.quiet:
            click.echo(f"dsopt: {text}", err=True)

    def bars(self) -> AbstractContextManager[Progress]:
        """Return a context in which `progress(done, total, what)` shows bars: on a terminal that people watch, and not with -q."""
        if self.quiet:
            return _Silent()
        if sys.stderr.isatty() and not os.environ.get("CI") and os.environ.get("TERM") != "dumb":
            return _Bars()
        return _Steps() if self.verbose else _Silent()


class _Silent(AbstractContextManager[Progress]):
    """Show nothing."""

    def __enter__(self) -> Progress:
        return lambda done, total, what: None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class _Steps(AbstractContextManager[Progress]):
    """Say each step once, a line each."""

    def __enter__(self) -> Progress:
        last = ""

        def progress(done: int, total: int, what: str) -> None:
            nonlocal last
            if what != last and done < max(total, 1):
                click.echo(f"dsopt: {what}", err=True)
            last = what

        return progress

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class _Bars(AbstractContextManager[Progress]):
    """One bar on stderr, gone when the work is done. Rich honours NO_COLOR itself."""

    def __enter__(self) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._progress = RichProgress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
            console=Console(stderr=True), transient=True,
        )  # fmt: skip
        self._progress.start()
        task = self._progress.add_task("", total=None)

        def progress(done: int, total: int, what: str) -> None:
            self._progress.update(task, completed=done, total=max(total, 1), description=what)

        return progress

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return aligned columns: numbers to the right with thousands separated, text to the left. "" without rows."""
    if not rows:
        return ""
    cells = [[_cell(value) for value in row] for row in rows]
    is_number = [
        all(isinstance(row[column], (int, float)) or row[column] in (None, "") for row in rows)
        for column in range(len(header))
    ]
    widths = [max(len(line[column]) for line in [list(header), *cells]) for column in range(len(header))]
    lines = []
    for line in [list(header), *cells]:
        aligned = [
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(line, widths, is_number, strict=True)
        ]
        lines.append("  ".join(aligned).rstrip())
    return "\n".join(lines) + "\n"


def shortened(text: str, width: int = 60) -> str:
    """Return a text that fits a column: cut after `width` characters, with dots for the rest."""
    return text if len(text) <= width else f"{text[: width - 3]}..."


def pairs(items: Sequence[tuple[str, Any]]) -> str:
    """Return "name  value" lines; items without a value are left out."""
    kept = [(name, _cell(value)) for name, value in items if value not in (None, "")]
    width = max((len(name) for name, _ in kept), default=0)
    return "".join(f"{name.ljust(width)}  {value}\n" for name, value in kept)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.3g}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(str(item) for item in value) + "]"
    text = " ".join(str(value).split())
    # what a stranger's file calls its layers must not reach the terminal as commands
    return text if text.isprintable() else "".join(each if each.isprintable() else "\ufffd" for each in text)


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: numbers that are not finite become text, paths too."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)
