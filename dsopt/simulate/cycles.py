"""An estimate of cycles from executed Thumb instructions. An estimate: say so wherever it is shown.

The rule: one cycle an instruction, but a load 2 (1 right after another load), a load or store of n words 1+n, an integer
division 6, a taken branch 2 more; VFMA and VMLA 3, VDIV and VSQRT 14. That is the table of the Cortex-M4 (Arm DDI 0439, tables 3-1
and 7-1) with a mean for what depends on data, without wait states of the flash: published boards need 20 to 30 % more.
"""

from __future__ import annotations

from collections.abc import Iterator

TAKEN_BRANCH = 2
_DIVISION, _FLOAT_DIVISION, _FLOAT_FUSED = 6, 14, 3


def instructions(code: bytes) -> Iterator[tuple[int, int]]:
    """Yield the two halfwords of each Thumb instruction; the second is -1 for the short ones (Arm DDI 0403, A5.1)."""
    offset = 0
    while offset + 2 <= len(code):
        first = int.from_bytes(code[offset : offset + 2], "little")
        if first >> 11 >= 0b11101 and offset + 4 <= len(code):
            yield first, int.from_bytes(code[offset + 2 : offset + 4], "little")
            offset += 4
        else:
            yield first, -1
            offset += 2


def block_cycles(code: bytes) -> int:
    """Estimate the cycles of a block that runs from its first to its last instruction, without its branch."""
    total = 0
    after_load = False
    for first, second in instructions(code):
        cycles, is_load = _short(first) if second < 0 else _long(first, second)
        total += 1 if is_load and after_load else cycles
        after_load = is_load
    return total


def _bits(value: int) -> int:
    return bin(value).count("1")


def _short(word: int) -> tuple[int, bool]:
    """Return cycles and whether it is a load of one word, of a 16-bit instruction (Arm DDI 0403, A5.2)."""
    if word >> 11 == 0b01001:  # LDR from the literal pool
        return 2, True
    if word >> 12 == 0b0101:  # register offset: STR, STRH, STRB, then five loads
        return (2, True) if word >> 9 & 7 >= 3 else (1, False)
    if word >> 12 in (0b0110, 0b0111, 0b1000, 0b1001):  # immediate offset
        return (2, True) if word >> 11 & 1 else (1, False)
    if word >> 12 == 0b1011 and word >> 9 & 3 == 0b10:  # PUSH, POP
        return 1 + _bits(word & 0x1FF), False
    if word >> 12 == 0b1100:  # STM, LDM
        return 1 + _bits(word & 0xFF), False
    return 1, False


def _long(first: int, second: int) -> tuple[int, bool]:
    """Return the same of a 32-bit instruction (Arm DDI 0403, A5.3)."""
    if first & 0xFE40 == 0xE800:  # LDM, STM, PUSH, POP
        return 1 + _bits(second), False
    if first & 0xFE40 == 0xE840:  # LDRD, STRD; without P and W: exclusive loads and table branches
        return (3, False) if first & 0x0120 else (2, True)
    if first & 0xFE00 == 0xF800:
        return (2, True) if first & 0x0010 else (1, False)
    if first & 0xFFD0 == 0xFB90 and second & 0xF0 == 0xF0:
        return _DIVISION, False
    if first & 0xEC00 == 0xEC00 and second & 0x0E00 == 0x0A00:
        return _float(first, second)
    return 1, False


def _float(first: int, second: int) -> tuple[int, bool]:
    """Return the same of an instruction of the floating-point unit (Arm DDI 0403, A6)."""
    if first & 0xFE00 == 0xEC00:
        if first & 0x0120 == 0x0100:  # VLDR, VSTR
            return (2, True) if first & 0x0010 else (1, False)
        if first & 0x01E0 == 0x0040:  # VMOV of two registers
            return 2, False
        return 1 + (second & 0xFF), False  # VLDM, VSTM, VPUSH, VPOP
    if second & 0x10:  # VMOV of one register, VMRS
        return 1, False
    operation = first >> 4 & 0xB
    if operation in (0x0, 0x1, 0x9, 0xA):  # VMLA, VNMLA, VFNMA, VFMA
        return _FLOAT_FUSED, False
    is_root = operation == 0xB and first & 0xF == 1 and second >> 6 & 3 == 3
    if operation == 0x8 or is_root:
        return _FLOAT_DIVISION, False
    return 1, False
