"""What a program is compiled for: frozen, checked when constructed, and the same as its text form.

    parse_target("cpu")                 CpuTarget()
    parse_target("cuda:sm_90")          CudaTarget(archs=("sm_90",))
    parse_target("mcu:cortex-m4")       McuTarget(core="cortex-m4")
    parse_target("mcu:nucleo-l4r5zi")   McuTarget.of(find_board("nucleo-l4r5zi")), whose name is "mcu:cortex-m4@nucleo-l4r5zi"

A board's name stands after its core, so that whoever reads the text, with or without the table of boards, knows what the code is for.
Limits are no part of the text. Imports no heavy package: `dsopt targets` answers at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from dsopt.errors import UsageError, did_you_mean
from dsopt.target.boards import Board, find_board, known_boards
from dsopt.target.cores import CORES, Core

__all__ = [
    "CORES",
    "DEFAULT_CUDA_ARCHS",
    "Board",
    "Core",
    "CpuTarget",
    "CudaTarget",
    "McuTarget",
    "Target",
    "core_of",
    "find_board",
    "known_boards",
    "parse_target",
    "target_names",
]


DEFAULT_CUDA_ARCHS = ("sm_80", "sm_90", "sm_100")


@dataclass(frozen=True)
class Target(ABC):
    """Base of the targets. `kind` chooses the backend, `name` is the text form."""

    @property
    def kind(self) -> str:
        """Return the part of the name before the colon."""
        return self.name.partition(":")[0]

    @property
    @abstractmethod
    def name(self) -> str:
        """Return the text that `parse_target` reads back."""


@dataclass(frozen=True)
class CpuTarget(Target):
    """This computer, through ONNX Runtime."""

    @property
    def name(self) -> str:
        """Return "cpu"."""
        return "cpu"


@dataclass(frozen=True)
class CudaTarget(Target):
    """NVIDIA GPUs. `archs` are compute capabilities such as "sm_90"; PTX of the newest is added for later GPUs."""

    archs: tuple[str, ...] = DEFAULT_CUDA_ARCHS

    def __post_init__(self) -> None:
        if not self.archs:
            raise UsageError(
                "DS0904", "a CUDA target needs at least one architecture", fix='name one, as in "cuda:sm_90"'
            )
        for arch in self.archs:
            digits = arch.removeprefix("sm_").removesuffix("a")
            if not arch.startswith("sm_") or not digits.isdigit() or not 70 <= int(digits) <= 121:
                raise UsageError(
                    "DS0904",
                    f"unknown CUDA architecture {arch!r}",
                    fix="use sm_70 to sm_121, as in cuda:sm_80 or cuda:sm_90",
                )

    @property
    def name(self) -> str:
        """Return "cuda" or "cuda:sm_80+sm_90"."""
        return "cuda" if self.archs == DEFAULT_CUDA_ARCHS else "cuda:" + "+".join(self.archs)


LEAST_BYTES = 1024
"""The smallest memory that a target may have."""


@dataclass(frozen=True)
class McuTarget(Target):
    """A microcontroller core with its memories, in bytes, or a board. A program that needs more is refused with a BudgetError.

    instructions: the most that one run may take; None sets no limit.
    """

    core: str = "cortex-m4"
    ram_bytes: int = 4 << 20
    flash_bytes: int = 16 << 20
    board: Board | None = None
    instructions: int | None = None

    def __post_init__(self) -> None:
        if self.core not in CORES:
            raise UsageError(
                "DS0904", f"unknown microcontroller core {self.core!r}",
                fix=f"{did_you_mean(self.core, CORES)}known cores: {', '.join(CORES)}",
            )  # fmt: skip
        if self.board is not None and self.board.core != self.core:
            raise UsageError(
                "DS0904", f"{self.board.name} has a {self.board.core}, and not a {self.core}", fix="leave the core out"
            )
        if self.instructions is not None and not 1 <= self.instructions <= 1 << 53:
            raise UsageError("DS0904", f"instructions={self.instructions} is no limit", fix="give a number above 0")
        for label, value in (("ram_bytes", self.ram_bytes), ("flash_bytes", self.flash_bytes)):
            if not LEAST_BYTES <= value <= 1 << 28:
                raise UsageError(
                    "DS0904", f"{label}={value} is not a memory size", fix="give 1 KiB to 256 MiB, in bytes"
                )

    @property
    def name(self) -> str:
        """Return "mcu:cortex-m4" or "mcu:cortex-m4@nucleo-l4r5zi"."""
        return f"mcu:{self.core}" + (f"@{self.board.name}" if self.board else "")

    @staticmethod
    def of(board: Board) -> McuTarget:
        """Return the target of a board, with its memories as the limits."""
        return McuTarget(board.core, board.ram_bytes, board.flash_bytes, board)


def parse_target(text: str, boards: Mapping[str, Board] | None = None) -> Target:
    """Read "cpu", "cuda", "cuda:sm_80+sm_90", "mcu:cortex-m4", "mcu:nucleo-l4r5zi" or "mcu:cortex-m4@nucleo-l4r5zi".

    boards: those known; ours by default.  Raises UsageError naming the known targets or boards.
    """
    kind, _, rest = text.strip().partition(":")
    if kind == "cpu" and not rest:
        return CpuTarget()
    if kind == "cuda":
        return CudaTarget(tuple(rest.split("+"))) if rest else CudaTarget()
    if kind == "mcu" and rest:
        return _mcu(rest, boards)
    known = target_names()
    meant = [*known, *(f"mcu:{name}" for name in (known_boards() if boards is None else boards))]
    hint = did_you_mean(text, meant) or did_you_mean(f"mcu:{text}", meant)
    raise UsageError("DS0904", f"unknown target {text!r}", fix=f"{hint}known targets: {', '.join(known)}")


def _mcu(text: str, boards: Mapping[str, Board] | None) -> McuTarget:
    core, at, name = text.partition("@")
    if at:
        target = McuTarget.of(find_board(name, boards))
        if core != target.core:
            raise UsageError(
                "DS0904", f"{name[:80]} has a {target.core}, and not a {core[:80]}", fix=f"write mcu:{name}"
            )
        return target
    if core in CORES:
        return McuTarget(core)
    known = known_boards() if boards is None else boards
    try:
        return McuTarget.of(find_board(core, known))
    except UsageError as problem:
        hint, cores = did_you_mean(core.lower(), [*CORES, *known]), ", ".join(CORES)
        rest = problem.fix[problem.fix.index("known boards:") :]
        raise UsageError(
            "DS0904", f"{core[:80]!r} is neither a core nor a board", fix=f"{hint}known cores: {cores}; {rest}"
        ) from None


def core_of(name: str) -> str:
    """Return the core that a microcontroller target's text names: "cortex-m4" of "mcu:cortex-m4@nucleo-l4r5zi"."""
    return name.partition(":")[2].partition("@")[0]


def target_names() -> tuple[str, ...]:
    """Return every target by name, in a stable order."""
    return ("cpu", "cuda", *(f"cuda:{arch}" for arch in DEFAULT_CUDA_ARCHS), *(f"mcu:{core}" for core in CORES))
