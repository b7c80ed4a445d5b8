"""Images may come from strangers: altered and truncated ones are refused with a sentence, and none takes the caller down."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given, settings
from hypothesis import strategies as st

from dsopt.errors import DsoptError, ReadError
from dsopt.simulate import read_image, simulate
from dsopt.simulate.boards import BOARDS, WIDE, board_of, memory_maps
from tests.simulate.images import NO_PORTS, image
from tests.simulate.test_simulate import polynomial

pytestmark = pytest.mark.mcu


def test_an_image_says_where_it_lies_and_what_it_exchanges() -> None:
    read = read_image(polynomial())
    assert (read.memory.ram_origin, read.memory.mailbox_origin) == (0x2000_0000, 0x2100_0000)
    assert [span.bytes for span in read.inputs] == [span.bytes for span in read.outputs] == [32]
    assert read.inputs[0].address == read.symbols["x"]
    assert read.function_at(read.symbols["layer_sum"] + 2) == "layer_sum"
    assert read.function_at(read.functions[0][0] - 2) == ""


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"not an ELF file", bytes(1000)])
def test_what_is_no_image_is_refused(content: bytes) -> None:
    with pytest.raises(ReadError, match=r"DS1003"):
        read_image(content)


def test_a_program_of_this_computer_is_refused() -> None:
    with pytest.raises(ReadError, match=r"no 32-bit little-endian ELF file for Arm or RISC-V|truncated"):
        read_image(Path("/bin/sh").read_bytes())


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"none\.elf cannot be read\n  why: No such file"):
        simulate(tmp_path / "none.elf", "cortex-m4")
    (tmp_path / "image.elf").write_bytes(polynomial())
    assert simulate(tmp_path / "image.elf", "cortex-m4", runs=[[bytes(32)]]).outputs == ((bytes(32),),)


def test_an_image_without_the_firmware_is_refused() -> None:
    content = polynomial().replace(b"harness_exit\0", b"another_exit\0")
    with pytest.raises(ReadError, match=r"it has no symbol 'harness_exit'"):
        read_image(content)


def test_a_layer_may_be_named_like_a_part_of_the_firmware() -> None:
    layer = "static __attribute__((noinline, used)) int harness_exit(int x) { return x + 1; }\n"
    call = "int first(int x);\nint first(int x) { return harness_exit(x); }\n"
    tables = "int first(int x);\n" + NO_PORTS + "int harness_run(void) { return first(-1); }\n"
    assert simulate(image(layer + call, tables), "cortex-m4").exit_code == 0


def test_a_memory_map_of_a_newer_firmware_is_refused() -> None:
    content = polynomial().replace(struct.pack("<II", 0x64736F70, 1), struct.pack("<II", 0x64736F70, 2))
    with pytest.raises(ReadError, match=r"of version 2, and 1 is known here"):
        read_image(content)


@pytest.mark.parametrize("word", range(2, 8))
def test_an_altered_memory_map_runs_or_is_refused(word: int) -> None:
    at = polynomial().index(struct.pack("<II", 0x64736F70, 1)) + 4 * word
    for value in (0, 0x1000, 0x2000_0000, 0xFFFF_FFFF):
        content = bytearray(polynomial())
        content[at : at + 4] = struct.pack("<I", value)
        try:
            done = simulate(bytes(content), "cortex-m4", runs=[[bytes(32)]], seconds=5)
        except DsoptError as error:
            assert error.code in ("DS1001", "DS1003", "DS1004", "DS1006")
        else:
            assert done.outputs == ((bytes(32),),)


@settings(max_examples=150)
@given(data=st.data())
def test_an_altered_image_is_read_or_refused(data: st.DataObject) -> None:
    content = bytearray(polynomial())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.one_of(st.integers(0, 200), st.integers(0, len(content) - 1)))
        content[at] = data.draw(st.integers(0, 255))
    end = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    try:
        read_image(bytes(content[:end]))
    except DsoptError as error:
        assert error.code == "DS1003"


@settings(max_examples=12)
@given(data=st.data())
def test_altered_code_runs_or_is_reported(data: st.DataObject) -> None:
    section = ELFFile(io.BytesIO(polynomial())).get_section_by_name(".text")
    content = bytearray(polynomial())
    start = section["sh_offset"]
    for _ in range(data.draw(st.integers(1, 3))):
        content[start + data.draw(st.integers(0, section["sh_size"] - 1))] = data.draw(st.integers(0, 255))
    try:
        simulate(bytes(content), "cortex-m4", runs=[[bytes(32)]], seconds=1, simulator="unicorn")
    except DsoptError as error:
        assert error.code in ("DS1001", "DS1002", "DS1003", "DS1004")


def test_the_maps_of_the_boards_do_not_overlap() -> None:
    for memory in (WIDE, *(board.memory for board in BOARDS.values())):
        blocks = sorted(
            [
                (memory.flash_origin, memory.flash_bytes),
                (memory.ram_origin, memory.ram_bytes),
                (memory.mailbox_origin, memory.mailbox_bytes),
            ]
        )
        for (origin, count), following in zip(blocks, [*blocks[1:], (1 << 32, 0)], strict=True):
            assert origin + count <= following[0]


def test_a_core_without_a_board_has_the_wide_map_only() -> None:
    assert memory_maps("cortex-m0") == (WIDE,)
    assert board_of("cortex-m0", WIDE) is None
    assert board_of("cortex-m4", WIDE) is None
    board = BOARDS["cortex-m4"]
    assert board_of("cortex-m4", board.memory) is board
