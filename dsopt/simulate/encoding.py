"""Where one instruction ends and the next begins."""

from __future__ import annotations

from collections.abc import Iterator


def instruction_lengths(code: bytes, family: str) -> Iterator[int]:
    """Yield the bytes of each instruction, 2 or 4. family: "arm", whose code is Thumb, or "riscv".

    Thumb: the upper five bits of the first halfword tell (Arm DDI 0403, A5.1). RISC-V: its lower two bits do (Unprivileged ISA, 1.5).
    """
    offset = 0
    while offset + 2 <= len(code):
        is_long = code[offset + 1] >> 3 >= 0b11101 if family == "arm" else code[offset] & 0b11 == 0b11
        length = 4 if is_long and offset + 4 <= len(code) else 2
        yield length
        offset += length


def instruction_count(code: bytes, family: str) -> int:
    """Return the number of instructions of a block."""
    return sum(1 for _ in instruction_lengths(code, family))
