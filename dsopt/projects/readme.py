"""The README of a project: what it is, how to build it, what the model takes and gives, and what was checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsopt.projects.model import Model


def readme(model: Model, kind: str, summary: str, checked: str, how: str) -> str:
    """Return the text of README.md. checked: what dsopt's tests do with this kind; how: its commands."""
    return f"""# {model.name}

A neural network for {model.target}, compiled by dsopt. {summary}

## Use

{how.replace("NAME", model.name)}

The API is the comment at the top of `{model.name}/model.h`; `#include "{model.name}.h"` finds it. Everything external
begins with `{model.name}_`, so models with other names (`dsopt compile --name`) fit beside it.

## What it takes and gives

{_ports(model)}

{_memory(model)}

## What was checked

- The model's code: {_model_check(model)}
- This {kind} project: {checked}
"""


def _ports(model: Model) -> str:
    lines = ["| | name | in memory | shape | address |", "|---|---|---|---|---|"]
    for key, function in (("inputs", "input"), ("outputs", "output"), ("states", "state")):
        for number, port in enumerate(model.manifest.get(key, ())):
            shape = ", ".join(str(size) for size in port.get("shape", ()))
            call = f"`{model.name}_{function}({number})`"
            lines.append(
                f"| {function} {number} | `{_plain(port.get('name'))}` | {_stored(port)} | [{shape}] | {call} |"
            )
    if model.manifest.get("states"):
        lines.append(f"\nA run steps the states; `{model.name}_reset()` puts them back to their first values.")
    return "\n".join(lines)


def _stored(port: Mapping[str, Any]) -> str:
    grid = port.get("stored")
    if not isinstance(grid, Mapping):
        return _plain(port.get("dtype"))
    zero = grid.get("zero_point")
    shifted = f"(q + {-zero})" if isinstance(zero, int) and zero < 0 else f"(q - {zero})"
    return f"{_plain(grid.get('dtype'))}, which stands for {grid.get('scale')} * {shifted}"


def _memory(model: Model) -> str:
    memory = model.manifest.get("memory", {})
    names = (
        ("static_bytes", "static RAM"), ("stack_bytes", "stack"), ("flash_bytes", "flash"), ("instructions", "instructions of a run"),
    )  # fmt: skip
    known = [f"{label} {memory[key]:,}" for key, label in names if isinstance(memory.get(key), int)]
    return "Bytes, for " + model.core.name + ": " + "; ".join(known) + "." if known else ""


def _model_check(model: Model) -> str:
    why = model.manifest.get("memory", {}).get("why_not_run")
    check = model.manifest.get("check", {})
    if why:
        return f"compiled and assembled for {model.core.name}, and not run: {_plain(why)}."
    error = check.get("max_relative_error") if isinstance(check, Mapping) else None
    agreement = f"; largest relative error of an output {error:g}" if isinstance(error, float) else ""
    return f"built for {model.core.name}, run in an emulator and compared with the trained model{agreement}."


def _plain(value: Any) -> str:
    """Return text that stays inside a cell and inside backticks, whoever wrote the model."""
    text = "".join(each if each.isprintable() and each not in "`|<>" else "?" for each in str(value))
    return text[:100]
