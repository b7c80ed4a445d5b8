"""Options that several commands share."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from functools import update_wrapper
from pathlib import Path
from typing import Any, TypeVar

import click

from dsopt.cli.output import Output
from dsopt.errors import UsageError

Function = TypeVar("Function", bound=Callable[..., Any])


def speaking(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --json, -q and -v, and give the command an Output as its first argument."""

    @click.option("--json", is_flag=True, help="Print one JSON document instead of text.")
    @click.option("-q", "--quiet", is_flag=True, help="No progress and no notes on stderr.")
    @click.option(
        "-v", "--verbose", is_flag=True, help="Say each step; show tracebacks and warnings of other packages."
    )
    @click.pass_context
    def command(ctx: click.Context, /, *args: Any, json: bool, quiet: bool, verbose: bool, **options: Any) -> Any:
        if not verbose:
            # Torch and its companions warn about matters of their own, which no user of dsopt can act on.
            warnings.simplefilter("ignore")
        return function(Output(str(ctx.info_name), json, quiet, verbose), *args, **options)

    return update_wrapper(command, function)


def reading_models(function: Function) -> Function:
    """Add the options that say how a model is read: --input, --dim, --trust-pickle."""
    for option in (
        click.option(
            "--trust-pickle", is_flag=True, help="Unpickle a .pt that holds a whole module: this runs code from the file."
        ),
        fixing_dims,
        click.option(
            "--input", multiple=True, metavar="NAME:SHAPE:DTYPE",
            help="An input of a model that carries no example, as x:1x3x224x224:float32. May be repeated.",
        ),
    ):  # fmt: skip
        function = option(function)
    return function


def fixing_dims(function: Function) -> Function:
    """Add --dim."""
    option = click.option(
        "--dim",
        multiple=True,
        metavar="NAME=SIZE",
        callback=_read_dims,
        help="Fix a size that varies, as batch=1. May be repeated.",
    )
    return option(function)


def describing_boards(function: Function) -> Function:
    """Add --boards."""
    option = click.option(
        "--boards", multiple=True, metavar="FILE.toml", type=click.Path(dir_okay=False, path_type=Path),
        help="A file that describes boards of your own. May be repeated.",
    )  # fmt: skip
    return option(function)


def _read_dims(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
    dims: dict[str, int] = {}
    for text in values:
        match = re.fullmatch(r"\s*([A-Za-z_][\w.]*)\s*=\s*(\d{1,15})\s*", text)
        if match is None:
            raise UsageError("DS0909", f"--dim {text!r} does not fix a size", fix="Write it as --dim batch=1.")
        if dims.setdefault(match[1], int(match[2])) != int(match[2]):
            raise UsageError("DS0909", f"--dim gives {match[1]} two sizes, {dims[match[1]]} and {match[2]}")
    return dims


def artifact_path(text: str) -> Path:
    """Return the path of an artifact named on the command line."""
    return Path(text)
