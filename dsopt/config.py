"""Options from `dsopt.toml`, or from [tool.dsopt] in pyproject.toml: the nearest file in this folder or above.

    target = "mcu:cortex-m4"        # for every command that has --target

    [compile]
    fail-on = ["skip"]              # for dsopt compile only

The command line and the environment (DSOPT_COMPILE_TARGET) go before the file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from dsopt.errors import UsageError

OptionNames = Mapping[str, Callable[[], list[str]]]
"""Command -> the names of its options, asked for when a file is found."""

_MAX_BYTES = 1 << 20

_COMMAND_LINE_ONLY = frozenset({"trust_pickle"})
"""Options that a file must not set: a folder from a stranger would decide that its own files may run code."""


def default_map(given: Path | None, folder: Path, commands: OptionNames) -> dict[str, dict[str, Any]]:
    """Return {command: {option: value}} of the file `given`, or of the nearest one; {} where there is none.

    Raises UsageError for a file that is no TOML and for keys that no command knows.
    """
    if given is not None:
        return _options(_read(given), given, commands)
    for place in (folder, *folder.parents):
        if (place / "dsopt.toml").is_file():
            return _options(_read(place / "dsopt.toml"), place / "dsopt.toml", commands)
        if (place / "pyproject.toml").is_file():
            tool = _read(place / "pyproject.toml").get("tool", {})
            if isinstance(tool, dict) and "dsopt" in tool:
                return _options(tool["dsopt"], place / "pyproject.toml", commands)
    return {}


def _read(path: Path) -> dict[str, Any]:
    toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UsageError("DS0902", f"{path} has more than {_MAX_BYTES:,} bytes, which no configuration needs")
        content: dict[str, Any] = toml.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError("DS0902", f"{path} cannot be read", why=error.strerror or str(error)) from error
    except (ValueError, RecursionError) as error:
        raise UsageError("DS0902", f"{path} is no TOML", why=str(error)[:200]) from error
    return content


def _options(content: Any, path: Path, commands: OptionNames) -> dict[str, dict[str, Any]]:
    if not isinstance(content, dict):
        raise UsageError("DS0902", f"the configuration in {path} is no table")
    known = {command: set(names()) for command, names in commands.items()}
    everywhere = set().union(*known.values())
    options: dict[str, dict[str, Any]] = {command: {} for command in known}
    for key, value in content.items():
        if isinstance(value, dict):
            continue
        name = key.replace("-", "_")
        if name not in everywhere:
            raise _unknown(key, path, [*everywhere, *known])
        for command, names in known.items():
            if name in names:
                options[command][name] = _checked(key, value, path)
    for command, table in content.items():
        if not isinstance(table, dict):
            continue
        if command not in known:
            raise _unknown(command, path, list(known))
        for key, value in table.items():
            name = key.replace("-", "_")
            if name not in known[command]:
                raise _unknown(f"{command}.{key}", path, sorted(known[command]))
            options[command][name] = _checked(key, value, path)
    return options


def _checked(key: str, value: Any, path: Path) -> Any:
    if key.replace("-", "_") in _COMMAND_LINE_ONLY:
        raise UsageError(
            "DS0903", f"{path} sets {key!r}, which only the command line and the environment may set",
            why="A folder from a stranger could otherwise decide that its own files may run code.", fix=f"Give --{key} yourself.",
        )  # fmt: skip
    items = value if isinstance(value, list) else [value]
    if all(isinstance(item, (bool, int, float, str)) for item in items):
        return value
    raise UsageError(
        "DS0902", f"{key} in {path} is {value!r}", fix="Give text, a number, true, false, or a list of these."
    )


def _unknown(key: str, path: Path, known: list[str]) -> UsageError:
    spelled = sorted(name.replace("_", "-") for name in known)
    near = get_close_matches(key.rpartition(".")[2].replace("_", "-"), spelled, n=1)
    hint = f"Did you mean {near[0]}? " if near else ""
    return UsageError(
        "DS0903", f"{path} sets {key!r}, which dsopt does not know", fix=f"{hint}Known: {', '.join(spelled)}."
    )
