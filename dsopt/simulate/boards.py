"""Where an image for a core lies in memory, and the QEMU board with that map.

    cortex-m3     mps2-an385    Arm DAI 0385, 3.1
    cortex-m4     mps2-an386    Arm DAI 0386, 3.1
    cortex-m7     mps2-an500    Arm DAI 0500, 3.1
    cortex-m33    mps2-an505    Arm DAI 0505, 3.2; the secure aliases, because that is how the core starts
    cortex-m55    mps3-an547    Arm DAI 0547, 3.2; the same

An image that fits the board of its core is linked for it, so that one image runs on both simulators. A larger one, and one for a
core without a board, is linked for `WIDE`, which only Unicorn has.
"""

from __future__ import annotations

from dataclasses import dataclass

KiB, MiB = 1 << 10, 1 << 20

TIMER_NONE, TIMER_CMSDK, TIMER_SSE = 0, 1, 2
"""The kinds of timer that firmware/harness_counter.c knows, HARNESS_TIMER_... of firmware/harness.h."""


@dataclass(frozen=True)
class MemoryMap:
    """Addresses and lengths in bytes. `vectors_origin` is where the core looks for its vector table."""

    vectors_origin: int
    flash_origin: int
    flash_bytes: int
    ram_origin: int
    ram_bytes: int
    mailbox_origin: int
    mailbox_bytes: int
    timer_origin: int = 0
    timer_kind: int = TIMER_NONE


@dataclass(frozen=True)
class Board:
    """A machine of qemu-system-arm. `picoseconds` is the time of one tick of its timer."""

    machine: str
    memory: MemoryMap
    picoseconds: int


VECTORS_BYTES = 64

WIDE = MemoryMap(0, VECTORS_BYTES, 256 * MiB, 0x2000_0000, 256 * MiB, 0x6000_0000, 64 * MiB)


def _mps2(mailbox_origin: int) -> MemoryMap:
    return MemoryMap(0, VECTORS_BYTES, 4 * MiB - VECTORS_BYTES, 0x2000_0000, 4 * MiB, mailbox_origin, 16 * MiB,
                     0x4000_0000, TIMER_CMSDK)  # fmt: skip


_AN505 = MemoryMap(0x1000_0000, 0x1000_0000 + VECTORS_BYTES, 4 * MiB - VECTORS_BYTES, 0x3800_0000, 3 * MiB,
                   0x3830_0000, MiB, 0x5000_0000, TIMER_CMSDK)  # fmt: skip
_AN547 = MemoryMap(0, 0x7000_0000, 32 * MiB, 0x7200_0000, 16 * MiB, 0x7400_0000, 16 * MiB, 0x5810_0000, TIMER_SSE)

BOARDS: dict[str, Board] = {
    "cortex-m3": Board("mps2-an385", _mps2(0x2100_0000), 40_000),
    "cortex-m4": Board("mps2-an386", _mps2(0x2100_0000), 40_000),
    "cortex-m7": Board("mps2-an500", _mps2(0x6000_0000), 40_000),
    "cortex-m33": Board("mps2-an505", _AN505, 50_000),
    "cortex-m55": Board("mps3-an547", _AN547, 31_250),
}
"""Core -> board."""


def memory_maps(core: str) -> tuple[MemoryMap, ...]:
    """Return the maps that an image for `core` is tried on, the preferred one first."""
    board = BOARDS.get(core)
    return (WIDE,) if board is None else (board.memory, WIDE)


def board_of(core: str, memory: MemoryMap) -> Board | None:
    """Return the board that has the map that an image was linked for; None if there is none."""
    board = BOARDS.get(core)
    if board is None or board.memory.mailbox_origin != memory.mailbox_origin or memory.timer_kind == TIMER_NONE:
        return None
    return board
