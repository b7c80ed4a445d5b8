"""dsopt completion: the script that completes commands and options in a shell."""

from __future__ import annotations

import click

from dsopt.cli.options import speaking
from dsopt.cli.output import Output

_HOW = {
    "bash": 'add  eval "$(dsopt completion bash)"  to ~/.bashrc',
    "zsh": 'add  eval "$(dsopt completion zsh)"  to ~/.zshrc',
    "fish": "write it to ~/.config/fish/completions/dsopt.fish",
}


@click.command(short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(sorted(_HOW)))
@speaking
def command(console: Output, shell: str) -> None:
    """Print the completion script of SHELL: bash, zsh or fish."""
    from click.shell_completion import get_completion_class

    from dsopt.cli.group import cli

    kind = get_completion_class(shell)
    assert kind is not None, shell
    completion = kind(cli, {}, "dsopt", "_DSOPT_COMPLETE")
    script = completion.source_template % completion.source_vars()
    console.result({"shell": shell, "script": script, "how": _HOW[shell]}, script)
    console.note(f"to use it, {_HOW[shell]}")
