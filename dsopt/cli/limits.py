"""The options of dsopt compile that say for what: a target or a board, and how much of it the model may use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click
from click.core import ParameterSource

from dsopt.cli.options import describing_boards
from dsopt.errors import UsageError

if TYPE_CHECKING:
    from dsopt.target import McuTarget, Target

Function = TypeVar("Function", bound=Callable[..., object])


def limiting(function: Function) -> Function:
    """Add --target, --board, --boards, --ram, --flash, --instructions and --strict."""
    for option in (
        click.option(
            "--strict", is_flag=True, help="Fail if a layer of a microcontroller falls back to generic loops or to floating point."
        ),
        click.option("--instructions", metavar="COUNT", help="Fail if one run takes more on the emulated core: 5M, 800K. K is 1,000."),
        click.option(
            "--flash", metavar="BYTES", help="Fail if the code and weights of a microcontroller need more: 256K, 1M, 300000."
        ),
        click.option(
            "--ram", metavar="BYTES",
            help="Fail if the variables and the stack of a microcontroller need more: 64K, 20000. K is 1,024.",
        ),
        describing_boards,
        click.option("--board", metavar="NAME", help="Compile for a board and its memories, in place of --target; see dsopt targets."),
        click.option("--target", "-t", help="What to compile for: cpu, cuda:sm_90, mcu:cortex-m4; see dsopt targets."),
    ):  # fmt: skip
        function = option(function)
    return function


def choose_target(
    target: str | None,
    board: str | None,
    files: Sequence[Path],
    ram: str | None,
    flash: str | None,
    instructions: str | None,
) -> Target:
    """Return the target that the options of `limiting` name, with its limits. Raises UsageError if they contradict each other."""
    from dsopt.target import McuTarget, find_board, known_boards, parse_target
    from dsopt.target.byte_counts import parse_bytes, parse_count

    boards = known_boards(files)
    target, board = _one_of(target, board)
    if target is None and board is None:
        raise UsageError(
            "DS0909", "missing option '--target' or '--board'",
            fix="Name one, as in --target mcu:cortex-m4 or --board nucleo-l4r5zi; see dsopt targets.",
        )  # fmt: skip
    chosen: Target = McuTarget.of(find_board(board, boards)) if board is not None else parse_target(str(target), boards)
    if ram is None and flash is None and instructions is None:
        return chosen
    if not isinstance(chosen, McuTarget):
        raise UsageError(
            "DS0909",
            f"--ram, --flash and --instructions limit a microcontroller, and the target is {chosen.name}",
            fix="Leave them out.",
        )
    return replace(
        chosen,
        ram_bytes=chosen.ram_bytes if ram is None else _within(chosen, parse_bytes(ram, "--ram"), "ram"),
        flash_bytes=chosen.flash_bytes if flash is None else _within(chosen, parse_bytes(flash, "--flash"), "flash"),
        instructions=None if instructions is None else parse_count(instructions, "--instructions"),
    )


def _within(target: McuTarget, count: int, memory: str) -> int:
    """Return a limit in bytes. Raises UsageError if it is more than the target's board has."""
    have = target.ram_bytes if memory == "ram" else target.flash_bytes
    if target.board is not None and count > have:
        raise UsageError(
            "DS0909", f"--{memory} allows {count:,} bytes, and {target.board.name} has {have:,}",
            fix=f"Leave --{memory} out for all that the board has, or name another board; see dsopt targets.",
        )  # fmt: skip
    return count


def _one_of(target: str | None, board: str | None) -> tuple[str | None, str | None]:
    """Return the one that is to count where both are given: the one of the command line, if a file says the other."""
    if target is None or board is None:
        return target, board
    context = click.get_current_context()
    by_hand = [
        name for name in ("target", "board") if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if len(by_hand) == 1:
        return (target, None) if by_hand == ["target"] else (None, board)
    raise UsageError(
        "DS0909", f"--target {target} and --board {board} both say what to compile for", fix="Leave one of them out."
    )
