"""Turn whatever a command raises into a sentence on stderr, a JSON document on stdout where one was asked for, and an exit code."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import click

from dsopt.cli.packages import EXTRAS, extra_of
from dsopt.cli.signals import Terminated, end_at_once, ignore_signals
from dsopt.errors import DsoptError, ToolchainError, UsageError, WriteError

INTERRUPTED = 130
TERMINATED = 143
BROKEN_PIPE = 141
"""As shells say it: 128 and the number of the signal (SIGINT, SIGTERM, SIGPIPE)."""


class ReaderGoneError(Exception):
    """The reader of stdout went away: no failure, and nothing is to be said."""


class InternalError(DsoptError):
    """Something that dsopt did not expect: its own fault."""


def exit_code_of(run: Callable[[], Any], arguments: Sequence[str]) -> int:
    """Run a command and return its exit code, after saying what went wrong."""
    try:
        result = run()
        sys.stdout.flush()
        return result if isinstance(result, int) and not isinstance(result, bool) else 0
    except DsoptError as error:
        return _report(error, arguments)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        if not arguments:
            click.echo(error.format_message())  # the help, as click 8.2 and later raise it
            return 2
        return _report(_usage_error(error), arguments)
    except (click.Abort, KeyboardInterrupt):
        return _stopped("\ndsopt: interrupted", INTERRUPTED)
    except Terminated:
        return _stopped("dsopt: told to stop", TERMINATED)
    except (ReaderGoneError, BrokenPipeError):
        return BROKEN_PIPE
    except ModuleNotFoundError as error:
        return _report(_missing_package(error) or _internal(error, arguments), arguments)
    except MemoryError:
        out_of_memory = UsageError("DS0907", "there is not enough memory for this", fix="Use a smaller model or batch.")
        return _report(out_of_memory, arguments)
    except ValueError as error:
        # No shell passes it on, but a path in a configuration file may hold it.
        has_null = "embedded null" in str(error)
        null = UsageError("DS0901", "a path holds a null character", fix="look into the configuration file")
        return _report(null if has_null else _internal(error, arguments), arguments)
    except Exception as error:  # the last guard: no traceback reaches the user
        return _report(_internal(error, arguments), arguments)


def flush_quietly(code: int) -> int:
    """Flush stdout; where its reader is gone, say nothing, here and at the interpreter's end."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = BROKEN_PIPE
    except (OSError, ValueError):
        code = code or 2
    if code == BROKEN_PIPE:
        with suppress(OSError, ValueError):  # in tests, stdout is no real file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _stopped(what: str, code: int) -> int:
    ignore_signals()
    with suppress(OSError):
        click.echo(f"{what}; nothing half-written was left behind", err=True)
    end_at_once(code)
    return code


def _report(error: DsoptError, arguments: Sequence[str]) -> int:
    if "--json" in arguments:
        document = {
            "schema": 1,
            "command": _command(arguments),
            "error": {**error.as_dict(), "exit_code": error.exit_code},
        }
        with suppress(OSError):  # nobody may read stdout, and still someone may read stderr
            sys.stdout.write(json.dumps(document, indent=1, sort_keys=True) + "\n")
            sys.stdout.flush()
    with suppress(OSError):
        click.echo(f"dsopt: {error}", err=True)
        if not isinstance(error, InternalError):
            click.echo(f"  more: dsopt explain {error.code}", err=True)
    return error.exit_code


def _command(arguments: Sequence[str]) -> str:
    return next((argument for argument in arguments if not argument.startswith("-")), "")


def _usage_error(error: click.ClickException) -> UsageError:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "dsopt"
    message = " ".join(error.format_message().split())
    return UsageError("DS0901", message[:1].lower() + message[1:].rstrip("."), fix=f"{path} --help shows what it takes")


def _missing_package(error: ModuleNotFoundError) -> ToolchainError | None:
    name = (error.name or "").partition(".")[0]
    extra = extra_of(name)
    if extra is None:
        return None
    install = "dsopt" if extra == "" else f"dsopt[{extra}]"
    return ToolchainError(
        "DS0905", f"the package {name!r} is missing", why=f"this needs {EXTRAS[extra]}", fix=f'pip install "{install}"'
    )


def _internal(error: BaseException, arguments: Sequence[str]) -> InternalError:
    text = "".join(traceback.format_exception(error))
    if any(argument == "--verbose" or re.fullmatch(r"-[a-zA-Z]*v[a-zA-Z]*", argument) for argument in arguments):
        click.echo(text, err=True)
    try:
        with tempfile.NamedTemporaryFile("w", prefix="dsopt-", suffix=".log", delete=False, encoding="utf-8") as log:
            log.write(f"dsopt {' '.join(arguments)}\n\n{text}")
        where = f"the full report is in {log.name}"
    except OSError:
        where = "run again with -v for the full report"
    cause = " ".join(str(error).split())[:300]
    return InternalError(
        "DS0906", f"dsopt failed by a fault of its own: {type(error).__name__}: {cause}", where=where,
        fix="please report it, with the model if you can share it; -v shows the traceback",
    )  # fmt: skip


def output_failed(error: OSError) -> WriteError:
    """Return the error for a result that could not be written to stdout."""
    return WriteError("DS0908", "the result cannot be written to standard output", why=error.strerror or str(error))
