"""Instructions of each layer on QEMU: calls of layers are led through probes, which note the board's timer before and after.

The probes (probe.S) lie behind the image in flash, and their log behind its variables in RAM; in the image itself, nothing changes but the
targets of the calls. What a probe adds between its two notes is measured on a layer that is one instruction, and subtracted.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dsopt.errors import CheckError, UsageError
from dsopt.simulate.boards import TIMER_CMSDK, Board
from dsopt.simulate.encoding import instruction_count, instruction_lengths
from dsopt.simulate.image import Image

CODE = bytes.fromhex(
    "dff864c08ce80340dff86000d0e9001e714538bf08310160dff854e0c1f800e0dff854e0def800e0c1f804e0dce90001dff848e0f047"
    "dff830c08ce80300dff82c00d0e9001e714538bf08310160dff824e0c1f800e0dff820e0def800e0c1f804e09ce803407047"
)
"""The instructions of probe.S, after which six words follow."""

_WORDS = struct.Struct("<6I")
_ENTRY = struct.Struct("<2I")
_PROBE_BYTES = len(CODE) + _WORDS.size
_SLOT_BYTES = 16
_RETURN, _PUSH, _POP = bytes.fromhex("7047"), bytes.fromhex("10b5"), bytes.fromhex("10bd")
"""bx lr; push {r4, lr}; pop {r4, pc}."""

_BRANCH_BYTES = 4
_REACH = 1 << 24
_INSTRUCTIONS = instruction_count(CODE, "arm")
_MOST_ENTRIES = 1 << 20


@dataclass(frozen=True)
class Probes:
    """An image whose calls of layers go through probes, and where the probes and their log lie. The log begins as `log`."""

    elf: bytes
    layers: tuple[str, ...]
    code_origin: int
    code: bytes
    log_origin: int
    log: bytes


def with_probes(elf: bytes, image: Image, board: Board, layers: Sequence[str]) -> Probes | None:
    """Put probes around layers. None where the board has no room for them behind the image."""
    memory, names = image.memory, ("", *dict.fromkeys(layers))
    code_origin = -(-(memory.flash_origin + memory.flash_bytes) // 16) * 16
    log_origin = -(-(memory.ram_origin + memory.ram_bytes) // 16) * 16
    slots = log_origin
    log_origin += _SLOT_BYTES * len(names)
    room = min((board.memory.ram_origin + board.memory.ram_bytes - log_origin) // _ENTRY.size - 1, _MOST_ENTRIES)
    blank = code_origin + _PROBE_BYTES * len(names)
    start = blank + _BRANCH_BYTES
    code_end = start + len(_PUSH) + 2 * _BRANCH_BYTES + len(_POP)
    if room < 2 * len(names) or code_end > board.memory.flash_origin + board.memory.flash_bytes:
        return None
    if code_end - memory.flash_origin >= _REACH:
        return None
    timer = memory.timer_origin + (4 if memory.timer_kind == TIMER_CMSDK else 8)
    code = bytearray()
    for number, name in enumerate(names):
        target = image.symbols[name] if name else blank
        code += CODE + _WORDS.pack(
            slots + _SLOT_BYTES * number, log_origin, 2 * number, 2 * number + 1, timer, target | 1
        )
    code += _RETURN * 2
    code += _PUSH  # once the model is ready, the layer that is one instruction is called, before the first run
    code += _branch(code_origin + len(code), image.symbols["harness_init"], is_call=True)
    code += _branch(code_origin + len(code), code_origin, is_call=True) + _POP
    led = {image.symbols[name]: code_origin + _PROBE_BYTES * number for number, name in enumerate(names) if name}
    led[image.symbols["harness_init"]] = start
    log = _ENTRY.pack(log_origin, log_origin + _ENTRY.size * room)
    return Probes(_led(elf, image, led), names, code_origin, bytes(code), log_origin, log)


def entries_in(probes: Probes, head: bytes) -> int:
    """Return the entries of a log from its first two words. Raises UsageError if it was too short."""
    latest, last = (int(word) for word in _ENTRY.unpack(head))
    if latest >= last:
        raise UsageError(
            "DS1013", "QEMU's board has no memory to count so many calls of layers", fix="give fewer runs at a time"
        )
    return max(0, (latest - probes.log_origin) // _ENTRY.size)


def instructions_by_layer(probes: Probes, entries: bytes, board: Board, picoseconds: int) -> dict[str, int]:
    """Return the instructions of each layer, with what it calls, but without the layers that it calls, summed over all its calls.

    entries: of the log.  picoseconds: an instruction takes.  Raises CheckError if the log is none.
    """
    counts = dict.fromkeys(probes.layers, 0)
    added = 0
    frames: list[tuple[int, int, int]] = []  # layer, ticks, instructions that are not its own
    for event, ticks in _ENTRY.iter_unpack(entries):
        number = event >> 1
        if event & 1 == 0:
            frames.append((number, ticks, 0))
            continue
        if not frames or frames[-1][0] != number or number >= len(probes.layers):
            raise CheckError(
                "DS1004", "the image left a log of its layers that contradicts itself", fix="compile the model again"
            )
        _, before, others = frames.pop()
        taken = before - ticks if board.memory.timer_kind == TIMER_CMSDK else ticks - before
        between = (2 * (taken & 0xFFFF_FFFF) * board.picoseconds + picoseconds) // (2 * picoseconds)
        if number == 0:  # one instruction, and what the probe adds
            added = between - 1
            counts = dict.fromkeys(probes.layers, 0)  # what getting ready took is no part of a run
            continue
        whole = between - added
        counts[probes.layers[number]] += whole - others
        if frames:
            frames[-1] = (*frames[-1][:2], frames[-1][2] + whole + _INSTRUCTIONS)
    return {name: count for name, count in counts.items() if name}


def _led(elf: bytes, image: Image, targets: dict[int, int]) -> bytes:
    """Return the ELF file with each call of an address, and each jump there out of another function, led elsewhere."""
    changed = bytearray(elf)
    for segment in image.segments:
        if not segment.is_code:
            continue
        for address, target, is_call in _branches(image, segment.address, segment.content):
            if target in targets and image.function_at(address) != image.function_at(target):
                where = segment.file_offset + address - segment.address
                changed[where : where + _BRANCH_BYTES] = _branch(address, targets[target], is_call)
    return bytes(changed)


def _branches(image: Image, origin: int, code: bytes) -> Iterator[tuple[int, int, bool]]:
    """Yield address, target, and whether it is a call, of each BL and B.W. Each function is read from its start, past constants."""
    starts = [address for address, _ in image.functions if origin <= address < origin + len(code)]
    for start, end in zip(starts, [*starts[1:], origin + len(code)], strict=True):
        body = code[start - origin : end - origin]
        offset = 0
        for length in instruction_lengths(body, "arm"):
            found = _target(start + offset, body[offset : offset + length]) if length == _BRANCH_BYTES else None
            if found is not None:
                yield start + offset, *found
            offset += length


def _target(address: int, code: bytes) -> tuple[int, bool] | None:
    """Return where a BL (Arm DDI 0403, A7.7.18, encoding T1) or B.W (A7.7.12, T4) leads; None for all else."""
    first, second = struct.unpack("<2H", code)
    if first >> 11 != 0b11110 or second >> 14 not in (0b10, 0b11) or not second & 1 << 12:
        return None
    sign = first >> 10 & 1
    i1, i2 = (1 - (second >> bit & 1 ^ sign) for bit in (13, 11))
    offset = sign << 24 | i1 << 23 | i2 << 22 | (first & 0x3FF) << 12 | (second & 0x7FF) << 1
    return address + 4 + offset - (sign << 25), second >> 14 == 0b11


def _branch(address: int, target: int, is_call: bool) -> bytes:
    """Return a BL or B.W to a target within 16 MiB."""
    offset = target - address - 4
    assert -_REACH <= offset < _REACH
    sign = int(offset < 0)
    j1, j2 = (1 - (offset >> bit & 1) ^ sign for bit in (23, 22))
    first = 0b11110 << 11 | sign << 10 | offset >> 12 & 0x3FF
    second = (0b11 if is_call else 0b10) << 14 | j1 << 13 | 1 << 12 | j2 << 11 | offset >> 1 & 0x7FF
    return struct.pack("<2H", first, second)
