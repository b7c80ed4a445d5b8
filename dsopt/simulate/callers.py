"""Who called the function in which an emulator was stopped: read from the link register and the stack, without debug information."""

from __future__ import annotations

import struct

from dsopt.simulate.image import Image

MOST_STACK_BYTES = 1 << 16
"""How much of the stack is looked at, from its pointer."""

_MOST = 8


def callers(image: Image, pc: int, link: int, stack: bytes) -> tuple[str, ...]:
    """Return the functions that were being executed when the core was stopped, the innermost first, without the firmware's.

    link: the link register.  stack: the bytes from the stack pointer on. A word of it counts as a return address if right before there
    is a call. One that an earlier call left in a frame looks like that, too, so the list may name a function too many.
    """
    words = struct.unpack_from(f"<{len(stack) // 4}I", stack)
    places = [pc & ~1, *(word & ~1 for word in (link, *words) if _is_after_call(image, word))]
    found: list[str] = []
    for address in places:
        name = image.function_at(address)
        if name and name not in found and not name.startswith("harness_"):
            found.append(name)
    return tuple(found[:_MOST])


def _is_after_call(image: Image, word: int) -> bool:
    """Tell whether a call ends right before an address: BL or BLX (Arm DDI 0403, A7.7.18 and 19), or JAL or JALR that keep ra."""
    is_arm = image.family == "arm"
    if bool(word & 1) is not is_arm:  # return addresses of Thumb code are odd
        return False
    address = word & ~1
    segment = next(
        (each for each in image.segments if each.is_code and 4 <= address - each.address <= len(each.content)), None
    )
    if segment is None:
        return False
    halves: tuple[int, int] = struct.unpack_from("<2H", segment.content, address - segment.address - 4)
    first, second = halves
    if is_arm:
        return (first >> 11 == 0b11110 and second & 0xD000 == 0xD000) or second & 0xFF87 == 0x4780
    is_long = first & 0x7F in (0x6F, 0x67) and first >> 7 & 0x1 == 1 and first >> 8 & 0xF == 0
    is_short = second & 0xE003 == 0x2001 or (second & 0xF07F == 0x9002 and second & 0xF80 != 0)
    return is_long or is_short
