"""The `dsopt` command: a table of commands that are imported when called, and one place where every failure becomes a sentence."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from dsopt import __version__
from dsopt.cli.failures import ReaderGoneError, exit_code_of, flush_quietly
from dsopt.config import default_map

COMMANDS: dict[str, str] = {
    "compile": "Compile a model for a target.",
    "run": "Run an artifact.",
    "inspect": "Show a model's layers, sizes and blockers, or what an artifact holds.",
    "verify": "Compare an artifact with its model.",
    "bench": "Time an artifact, or count its instructions.",
    "report": "Write a page about an artifact, with the histograms of what is quantised.",
    "compress": "Prune, distil, train with quantisation and compile, measuring after each.",
    "distill": "Train a smaller model by a better one.",
    "export": "Write a model in another format, or an artifact as a project.",
    "passes": "List the passes and their options.",
    "targets": "List the targets and the boards.",
    "doctor": "Say what is installed and what is missing.",
    "explain": "Explain an error code.",
    "completion": "Print the completion script of a shell.",
}
"""Command -> what it does. `dsopt/cli/NAME.py` holds it as `command`."""

_HELP = "dsopt.help"


class DsoptGroup(click.Group):
    """Imports a command when it is called, and turns whatever it raises into a sentence and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None if there is none of this name."""
        return load_command(cmd_name) if cmd_name in COMMANDS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Answer an unknown command with the nearest known ones."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            near = get_close_matches(name, COMMANDS, n=2)
            hint = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(COMMANDS)}."
            raise click.UsageError(f"There is no command {name!r}. {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Click ends with 1 when the reader of stdout goes away, which means a failed check here."""
        ctx.meta[_HELP] = bool({"-h", "--help"} & set(ctx.args))
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderGoneError from error

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run and exit with 0 done, 1 a check failed, 2 usage or internal error, 3 unsupported model, 4 toolchain missing."""
        given = list(sys.argv[1:] if args is None else args)
        if not standalone_mode:
            return super().main(given, prog_name, complete_var, False, **extra)
        run = super().main
        code = exit_code_of(lambda: run(given, prog_name or "dsopt", complete_var, False, **extra), given)
        sys.exit(flush_quietly(code))


def load_command(name: str) -> click.Command:
    """Import a command by its name."""
    command: click.Command = import_module(f"dsopt.cli.{name}").command
    return command


def option_names(command: click.Command) -> list[str]:
    """Return the options that a configuration file may set, as it spells them: without dashes in front."""
    return [
        str(param.name)
        for param in command.params
        if isinstance(param, click.Option) and param.name not in ("help", "config")
    ]


@click.group(
    cls=DsoptGroup,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "DSOPT", "max_content_width": 100},
    epilog="Options also come from the environment (DSOPT_COMPILE_TARGET=cpu) and from dsopt.toml or [tool.dsopt] in "
    "pyproject.toml. Exit codes: 0 done, 1 a check failed, 2 wrong usage or an internal error, 3 the model is not supported, "
    "4 a toolchain is missing.",
)
@click.version_option(__version__, "-V", "--version", prog_name="dsopt", message="%(prog)s %(version)s")
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Read options from this TOML file instead of the nearest dsopt.toml or pyproject.toml.",
)
@click.pass_context
def cli(ctx: click.Context, config: Path | None) -> None:
    """Compile trained PyTorch models for CPUs, NVIDIA GPUs and microcontrollers, and run and check the result."""
    if not ctx.resilient_parsing and not ctx.meta.get(_HELP):
        known = {name: (lambda name=name: option_names(load_command(name))) for name in COMMANDS}
        ctx.default_map = default_map(config, Path.cwd(), known)
