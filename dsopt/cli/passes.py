"""dsopt passes: what passes there are, and their options."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import click

from dsopt.cli.options import speaking
from dsopt.cli.output import Output, table


@click.command(short_help="List the passes and their options.")
@speaking
def command(console: Output) -> None:
    """List the passes, their options with defaults, and what each does."""
    found = [describe(name) for name in _names()]
    rows = [
        (each["name"], ", ".join(f"{key}={value}" for key, value in each["options"].items()), each["summary"]) for each in found
    ]  # fmt: skip
    console.result({"passes": found}, table(["pass", "options", "what it does"], rows))


def describe(name: str) -> dict[str, Any]:
    """Return a pass's name, its options with their defaults as text, and the first line of its docstring."""
    from dsopt.passes.base import load_pass

    kind = load_pass(name)
    options = {field.name: _default(field) for field in dataclasses.fields(kind)}
    return {"name": name, "options": options, "summary": (inspect.getdoc(kind) or "").partition("\n")[0]}


def _names() -> list[str]:
    from dsopt.passes import PASSES

    return sorted(PASSES)


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return (
            str(field.default).lower()
            if isinstance(field.default, bool) or field.default is None
            else str(field.default)
        )
    return "required" if field.default_factory is dataclasses.MISSING else str(field.default_factory())
