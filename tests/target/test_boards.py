"""The table of boards: what is in ours, and what is refused of a user's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsopt.errors import UsageError
from dsopt.target import CORES, McuTarget, core_of, find_board, known_boards, parse_target
from dsopt.target.boards import Board, Region
from dsopt.target.byte_counts import format_bytes, parse_bytes, parse_count

GOOD = """
[my-board]
title = "Ours"
core = "cortex-m4"
clock_hz = 80_000_000
flash = "512K"
regions = [
  { name = "sram", bytes = "128K" },
  { name = "dtcm", bytes = 65536, kind = "tcm" },
  { name = "psram", bytes = "8M", kind = "external" },
]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "boards.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", known_boards())
def test_a_board_is_a_target_that_is_read_back_as_itself(name: str) -> None:
    target = parse_target(f"mcu:{name}")
    assert isinstance(target, McuTarget)
    assert target.name == f"mcu:{target.core}@{name}"
    assert parse_target(target.name) == target
    assert core_of(target.name) == target.core


def test_every_core_has_a_board_and_the_facts_are_those_of_the_datasheets() -> None:
    boards = known_boards()
    assert {board.core for board in boards.values()} == set(CORES)
    board = boards["nucleo-l4r5zi"]
    assert (board.core, board.ram_bytes, board.flash_bytes, board.clock_hz) == (
        "cortex-m4",
        655_360,
        2_097_152,
        120_000_000,
    )
    assert boards["nucleo-h743zi"].ram_bytes == 512 << 10  # the largest region, not the sum
    assert boards["stm32f746g-disco"].ram_bytes == 320 << 10  # without the memory beside the chip


def test_every_board_of_ours_names_its_source() -> None:
    import dsopt.target.boards

    text = Path(dsopt.target.boards.__file__).with_name("boards.toml").read_text()
    for name in known_boards():
        assert re.search(rf"^# .*\n\[{name}\]$", text, re.MULTILINE), f"{name} has no comment above it"


def test_a_board_of_a_user_is_known_beside_ours(tmp_path: Path) -> None:
    boards = known_boards([write(tmp_path, GOOD)])
    regions = (Region("sram", 131_072), Region("dtcm", 65_536, "tcm"), Region("psram", 8 << 20, "external"))
    assert boards["my-board"] == Board("my-board", "Ours", "cortex-m4", 80_000_000, 524_288, regions)
    assert "nucleo-l4r5zi" in boards
    target = parse_target("mcu:my-board", boards)
    assert isinstance(target, McuTarget)
    assert (target.name, target.ram_bytes) == ("mcu:cortex-m4@my-board", 131_072)
    assert parse_target(target.name, boards) == target


@pytest.mark.parametrize("name", ["NUCLEO-L4R5ZI", "nucleo_l4r5zi", " Nucleo L4R5ZI "])
def test_the_spelling_of_a_name_is_no_obstacle(name: str) -> None:
    assert find_board(name).name == "nucleo-l4r5zi"


def test_an_unknown_board_is_answered_with_near_ones() -> None:
    with pytest.raises(
        UsageError, match=r"DS0915: unknown board 'nucleo-l4r5'\n  do: did you mean nucleo-l4r5zi"
    ) as caught:
        find_board("nucleo-l4r5")
    assert "--boards FILE.toml" in caught.value.fix
    with pytest.raises(
        UsageError, match=r"DS0904: 'cortex-m9' is neither a core nor a board\n  do: did you mean cortex-m"
    ) as caught:
        parse_target("mcu:cortex-m9")
    assert "known cores: cortex-m0," in caught.value.fix
    assert "known boards: " in caught.value.fix
    for text, meant in (
        ("mcu:nucleo-l4r5z", "nucleo-l4r5zi"),
        ("cortex-m4", "mcu:cortex-m4"),
        ("nucleo-l4r5zi", "mcu:nucleo-l4r5zi"),
        ("mcu:cortex-m44", "cortex-m4"),
        ("cuda-sm_90", "cuda:sm_90"),
    ):
        with pytest.raises(UsageError, match=f"do: did you mean {meant}"):
            parse_target(text)
    with pytest.raises(UsageError, match="do: did you mean cortex-m33"):
        McuTarget("cortex-m3x3")
    with pytest.raises(UsageError, match=r"DS0904: nucleo-l4r5zi has a cortex-m4, and not a cortex-m7"):
        parse_target("mcu:cortex-m7@nucleo-l4r5zi")
    with pytest.raises(UsageError, match=r"DS0904: nucleo-l4r5zi has a cortex-m4, and not a cortex-m7"):
        McuTarget("cortex-m7", board=find_board("nucleo-l4r5zi"))


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("[my-board]", "[My_Board]", "its name is none"),
        ("[my-board]", "[cortex-m4]", "its name is a core's"),
        ("[my-board]", "[nucleo-l4r5zi]", "a board of this name is known already"),
        ("[my-board]", "my-board = 5\n[other]", "a board is '5', and no table"),
        ('"cortex-m4"', '"cortex-m9"', "unknown core 'cortex-m9'"),
        ("title =", "titel =", "a board has no key 'titel'"),
        ('title = "Ours"', "", "a board needs the key 'title'"),
        ('"Ours"', '"a\\u0007b"', "title is"),
        ("80_000_000", '"80 MHz"', "clock_hz is '80 MHz'"),
        ("80_000_000", "true", "clock_hz is True"),
        ('"512K"', '"512"', "flash has 512 bytes"),
        ('"512K"', '"1G"', "flash has 1,073,741,824 bytes"),
        ('"128K"', '"lots"', "is 'lots'"),
        ('"128K"', "true", "is 'True'"),
        ('"tcm"', '"fast"', "the kind of region 'dtcm' is 'fast'"),
        ('"dtcm"', '"sram"', "two of its regions have one name: sram, sram"),
        ('name = "dtcm", ', "", "a region needs the key 'name'"),
        ('name = "dtcm"', 'name = "dtcm", at = 5', "a region has no key 'at'"),
        ("regions = [", "regions = []\nothers = [", "a board has no key 'others'"),
        ('regions = [', "regions = []\n#", "is no TOML"),
        ("[my-board]", "[my-board", "is no TOML"),
    ],
)  # fmt: skip
def test_what_is_no_board_is_refused_with_a_sentence(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    assert old in GOOD
    with pytest.raises(UsageError, match=r"DS091[34]: ") as caught:
        known_boards([write(tmp_path, GOOD.replace(old, new))])
    assert complaint in str(caught.value)
    assert "boards.toml" in str(caught.value)


def test_a_board_needs_ram_on_the_chip(tmp_path: Path) -> None:
    outside = GOOD.replace('"128K"', '"128K", kind = "external"').replace('"tcm"', '"external"')
    with pytest.raises(UsageError, match="all its regions are external"):
        known_boards([write(tmp_path, outside)])
    none = GOOD[: GOOD.index("regions")] + "regions = []\n"
    with pytest.raises(UsageError, match="regions is no list of 1 to 16 memories"):
        known_boards([write(tmp_path, none)])


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"DS0914: .*none\.toml cannot be read\n  why: No such file"):
        known_boards([tmp_path / "none.toml"])


@given(st.text(max_size=200))
def test_no_text_breaks_the_reader(text: str) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8", errors="replace") as file:
        file.write(text)
        file.flush()
        try:
            known_boards([Path(file.name)])
        except UsageError as problem:
            assert problem.code in ("DS0913", "DS0914")


@pytest.mark.parametrize(
    ("text", "count"),
    [("64K", 65_536), ("64 KiB", 65_536), ("64kb", 65_536), ("1.5M", 1_572_864), ("65536", 65_536), ("0.5K", 512)],
)
def test_bytes_are_read_as_people_write_them(text: str, count: int) -> None:
    assert parse_bytes(text, "--ram") == count


@pytest.mark.parametrize("text", ["", "K", "-1", "0", "64Q", "1e3", "0.0001K", "64 K B", "9" * 20])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="DS0913: --ram is "):
        parse_bytes(text, "--ram")


def test_counts_have_decimal_units() -> None:
    assert [parse_count(text, "n") for text in ("5M", "250k", "1200000", "1.25M")] == [
        5_000_000,
        250_000,
        1_200_000,
        1_250_000,
    ]
    with pytest.raises(UsageError, match="K is 1,000"):
        parse_count("5MiB", "--instructions")


@given(st.integers(1, 1 << 34))
def test_bytes_are_read_back(count: int) -> None:
    assert parse_bytes(format_bytes(count), "it") == count
