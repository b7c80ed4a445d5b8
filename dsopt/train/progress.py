"""A bar on stderr for a training that people watch; nothing where nobody does."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, int, str], None]
"""(steps done, steps in all, what is being done)"""


@contextmanager
def progress_bar(enabled: bool) -> Iterator[Progress]:
    """Show a bar with the time that remains, on a terminal outside of CI."""
    if not enabled or not sys.stderr.isatty() or os.environ.get("CI"):
        yield lambda done, total, what: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=max(total, 1), description=what)
