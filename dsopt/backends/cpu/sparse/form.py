"""What the code is specialised for: sizes of heads, whether there is a bias, and the vectors of a CPU level."""

from __future__ import annotations

from dataclasses import dataclass

from dsopt.backends.cpu.sparse.code import Memory
from dsopt.backends.tir.tvm_adapter import Expr
from dsopt.runtime.sparse_layout import LEVEL_BASES, NUMBERS, padded


@dataclass(frozen=True)
class Level:
    """A set of instructions. name: of the psABI level, which is also LLVM's name of the CPU.

    lanes: float32 of one vector.  rows: of a micro-kernel's block, two vectors wide: rows * 2 sums and three more have to fit into
    the registers.  chunk: rows of keys that stay in the first cache together, a multiple of `rows`.
    """

    name: str
    lanes: int
    rows: int
    chunk: int


LEVELS = (Level("x86-64-v3", 8, 6, 72), Level("x86-64-v4", 16, 12, 72))


@dataclass(frozen=True)
class Form:
    """head, value_head: D and E, multiples of 8.  has_bias: whether keys have weights."""

    head: int
    value_head: int
    has_bias: bool
    level: Level

    @classmethod
    def of(cls, head: int, value_head: int, has_bias: bool, level: Level) -> Form:
        """Return the form for sizes that need not be multiples of 8."""
        return cls(padded(head), padded(value_head), has_bias, level)


class Numbers:
    """The numbers of a call, by name."""

    def __init__(self, held: Memory) -> None:
        self._held = held

    def __getitem__(self, name: str) -> Expr:
        return self._held[NUMBERS.index(name)]

    def base(self, level: Expr) -> Expr:
        """Return which node is the first of a level."""
        return self._held[level + LEVEL_BASES]
