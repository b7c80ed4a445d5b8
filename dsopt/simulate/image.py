"""Reads an image: an ELF file for a bare Arm or RISC-V core, linked with the firmware of this folder. It may come from a stranger.

Needs pyelftools; what it finds is checked before it is used, and sizes are bounded.
"""

from __future__ import annotations

import io
import struct
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

from dsopt.errors import ReadError, ToolchainError
from dsopt.simulate.boards import VECTORS_BYTES, WIDE, MemoryMap

MAGIC, VERSION = 0x64736F70, 1
"""HARNESS_MAGIC and HARNESS_VERSION of firmware/harness.h."""

PAGE = 4096
"""The step in which the simulators give out memory, in bytes."""

_MAX_BYTES = 1 << 29
_MAX_SPANS = 4096
_AGAIN = "compile the model again"
_FAMILIES = {"EM_ARM": "arm", "EM_RISCV": "riscv"}
_SYMBOLS = ("harness_reset", "harness_exit", "harness_run", "harness_counter_ticks", "harness_stack_top")


@dataclass(frozen=True)
class Segment:
    """Bytes of the image, at an offset of its file. They are loaded at `load_address`; code runs, and data is found, at `address`."""

    address: int
    load_address: int
    content: bytes
    is_code: bool
    file_offset: int = 0


@dataclass(frozen=True)
class Span:
    """A block of memory that the host fills before a run or reads after it."""

    address: int
    bytes: int


@dataclass(frozen=True)
class Image:
    """What the simulators need to know of an image. functions: (address, name), ascending; symbols: name -> address;
    family: of the core that it is for, as `dsopt.target.Core` names it."""

    segments: tuple[Segment, ...]
    functions: tuple[tuple[int, str], ...]
    symbols: dict[str, int]
    memory: MemoryMap
    inputs: tuple[Span, ...]
    outputs: tuple[Span, ...]
    family: str = "arm"

    def read(self, address: int, count: int) -> bytes:
        """Return initial bytes at an address. Raises ReadError if the image has none there."""
        for segment in self.segments:
            offset = address - segment.address
            if offset >= 0 and offset + count <= len(segment.content):
                return segment.content[offset : offset + count]
        raise _refused(f"it has no {count} bytes at {address:#010x}")

    def function_at(self, address: int) -> str:
        """Return the name of the function that begins at or before an address, "" if there is none."""
        index = bisect_right(self.functions, (address, "\U0010ffff"))
        return self.functions[index - 1][1] if index else ""


def read_image(content: bytes) -> Image:
    """Read an image. Raises ReadError if it is none, ToolchainError without pyelftools."""
    try:
        from elftools.elf.elffile import ELFFile
    except ModuleNotFoundError as error:
        raise ToolchainError(
            "DS1010", "the package 'pyelftools' is missing, and images are read with it", fix="pip install dsopt[mcu]"
        ) from error
    try:
        elf = ELFFile(io.BytesIO(content))
        family = _FAMILIES.get(elf["e_machine"])
        if elf.elfclass != 32 or not elf.little_endian or family is None:
            raise _refused("it is no 32-bit little-endian ELF file for Arm or RISC-V")
        segments = _segments(elf)
        functions, symbols = _symbols(elf)
        return _checked(segments, functions, symbols, family)
    except ReadError:
        raise
    except Exception as error:  # pyelftools raises nearly anything for damaged files
        raise _refused(f"it is truncated or altered ({type(error).__name__}: {str(error)[:120]})") from error


def _segments(elf: Any) -> tuple[Segment, ...]:
    found = []
    total = 0
    for segment in elf.iter_segments():
        if segment["p_type"] != "PT_LOAD" or not segment["p_filesz"]:
            continue
        content = segment.data()
        total += len(content)
        if len(content) != segment["p_filesz"] or total > _MAX_BYTES:
            raise _refused("its segments leave the file")
        for address in (segment["p_vaddr"], segment["p_paddr"]):
            if address + len(content) > 1 << 32:
                raise _refused("its segments leave the address space")
        found.append(
            Segment(segment["p_vaddr"], segment["p_paddr"], content, bool(segment["p_flags"] & 1), segment["p_offset"])
        )
    return tuple(found)


def _symbols(elf: Any) -> tuple[tuple[tuple[int, str], ...], dict[str, int]]:
    table = elf.get_section_by_name(".symtab")
    if table is None:
        raise _refused("it has no symbols")
    functions: dict[int, str] = {}
    symbols: dict[str, int] = {}
    # A layer may be named like a function of the firmware; it is then a local symbol, and the firmware's is a global one.
    for symbol in sorted(table.iter_symbols(), key=lambda symbol: bool(symbol["st_info"]["bind"] == "STB_LOCAL")):
        name, address = symbol.name, int(symbol["st_value"])
        if not name or name.startswith("$") or symbol["st_shndx"] == "SHN_UNDEF":
            continue
        if symbol["st_info"]["type"] == "STT_FUNC":
            address &= ~1  # the lowest bit says that it is Thumb code
            functions[address] = min(functions.get(address, name), name)
        elif symbol["st_info"]["type"] == "STT_FILE":
            continue
        symbols.setdefault(name, address)
    return tuple(sorted(functions.items())), symbols


def _checked(
    segments: tuple[Segment, ...], functions: tuple[tuple[int, str], ...], symbols: dict[str, int], family: str
) -> Image:
    missing = [name for name in (*_SYMBOLS, "harness_map") if name not in symbols]
    if missing:
        raise _refused(f"it has no symbol {missing[0]!r}")
    empty = Image(segments, functions, symbols, MemoryMap(0, 0, 0, 0, 0, 0, 0), (), ())
    words = struct.unpack("<10I", empty.read(symbols["harness_map"], 40))
    if words[:2] != (MAGIC, VERSION):
        raise _refused(f"its memory map is of version {words[1]}, and {VERSION} is known here")
    vectors = min((segment.load_address for segment in segments), default=0)
    memory = MemoryMap(vectors, *words[2:])
    _check_map(memory, segments)
    return Image(segments, functions, symbols, memory, _spans(empty, "input"), _spans(empty, "output"), family)


def _check_map(memory: MemoryMap, segments: tuple[Segment, ...]) -> None:
    flash = memory.flash_origin, memory.flash_bytes
    ram = memory.ram_origin, memory.ram_bytes
    mailbox = memory.mailbox_origin, memory.mailbox_bytes
    if memory.mailbox_bytes > WIDE.mailbox_bytes:
        raise _refused(f"its mailbox has {memory.mailbox_bytes:,} bytes")
    blocks = sorted((flash, ram, mailbox))
    for (origin, count), following in zip(blocks, [*blocks[1:], (1 << 32, 0)], strict=True):
        if not 0 < count <= _MAX_BYTES or origin + count > following[0]:
            raise _refused("the blocks of its memory map overlap or leave the address space")
    vectors = memory.vectors_origin, VECTORS_BYTES
    for segment in segments:
        start, end = segment.load_address, segment.load_address + len(segment.content)
        if not any(
            origin <= start and end <= origin + count for origin, count in (flash, vectors, _joined(vectors, flash))
        ):
            raise _refused("its segments leave its flash")


def _joined(vectors: tuple[int, int], flash: tuple[int, int]) -> tuple[int, int]:
    """Return both blocks as one where the flash follows the vectors."""
    return (vectors[0], vectors[1] + flash[1]) if sum(vectors) == flash[0] else flash


def _spans(image: Image, kind: str) -> tuple[Span, ...]:
    for name in (f"harness_{kind}s", f"harness_{kind}_count"):
        if name not in image.symbols:
            raise _refused(f"it has no symbol {name!r}")
    count = int.from_bytes(image.read(image.symbols[f"harness_{kind}_count"], 4), "little")
    if count > _MAX_SPANS:
        raise _refused(f"it names {count:,} {kind}s")
    words = struct.unpack(f"<{2 * count}I", image.read(image.symbols[f"harness_{kind}s"], 8 * count))
    spans = tuple(Span(words[i], words[i + 1]) for i in range(0, len(words), 2))
    if sum(span.bytes for span in spans) > _MAX_BYTES:
        raise _refused(f"its {kind}s are larger than its memory")
    return spans


def _refused(what: str) -> ReadError:
    return ReadError("DS1003", f"this is no image that can be simulated: {what}", fix=_AGAIN)
