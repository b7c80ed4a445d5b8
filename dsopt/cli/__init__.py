"""The command line: parse, call, print. One file a command; a command is imported when it is called."""

from __future__ import annotations

from typing import NoReturn

from dsopt.cli.group import cli
from dsopt.cli.signals import stop_on_termination

__all__ = ["cli", "main"]


def main() -> NoReturn:
    """Run the command line of this process and exit with its code."""
    stop_on_termination()
    cli.main(prog_name="dsopt")
    raise AssertionError("click exits")
