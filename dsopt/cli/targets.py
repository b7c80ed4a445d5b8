"""dsopt targets: what can be compiled for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dsopt.cli.options import describing_boards, speaking
from dsopt.cli.output import Output, table

if TYPE_CHECKING:
    from dsopt.target import Board


@click.command(short_help="List the targets and the boards.")
@describing_boards
@speaking
def command(console: Output, boards: tuple[Path, ...]) -> None:
    """List the targets by name, with what is special about each, and the boards for --board.

    RAM is listed region by region: a model may use as much as the largest on the chip has.
    """
    from dsopt.target import known_boards, target_names

    found = [{"name": name, "about": _about(name)} for name in target_names()]
    known = known_boards(boards).values()
    text = table(["target", "what it is"], [(each["name"], each["about"]) for each in found]) + "\n"
    text += table(["board", "core", "RAM", "flash", "clock", "what it is"], [_board_row(board) for board in known])
    console.result({"targets": found, "boards": [board.as_dict() for board in known]}, text)


def _about(name: str) -> str:
    from dsopt.target import CORES, DEFAULT_CUDA_ARCHS

    kind, _, rest = name.partition(":")
    if kind == "cpu":
        return "this computer, through ONNX Runtime"
    if kind == "cuda":
        return f"NVIDIA GPUs of {rest}" if rest else f"NVIDIA GPUs: {', '.join(DEFAULT_CUDA_ARCHS)} and later ones"
    return CORES[rest].about


def _board_row(board: Board) -> tuple[str, ...]:
    from dsopt.target.byte_counts import format_bytes

    ram = ", ".join(f"{region.name} {format_bytes(region.bytes)}" for region in board.regions)
    return board.name, board.core, ram, format_bytes(board.flash_bytes), f"{board.clock_hz / 1e6:g} MHz", board.title
