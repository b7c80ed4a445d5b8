"""Boards by name: their core, memories and clock, from `boards.toml` beside this file and from files of users.

    [nucleo-l4r5zi]                                     # the name: small letters, digits and dashes
    title = "ST NUCLEO-L4R5ZI"
    core = "cortex-m4"
    clock_hz = 120_000_000
    flash = "2M"                                        # bytes, or K, M, G of 1,024
    regions = [{ name = "sram", bytes = "640K" }]       # kind = "internal" (the default), "tcm" or "external"

A board's target may use as much RAM as its largest region on the chip has, because a linker puts a model's variables into one region.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from dsopt.errors import UsageError, did_you_mean
from dsopt.target.byte_counts import parse_bytes
from dsopt.target.cores import CORES

KINDS = ("internal", "tcm", "external")
"""Of regions: memory on the chip, memory that is coupled to the core, memory beside the chip."""

_OURS = Path(__file__).with_name("boards.toml")
_MAX_FILE_BYTES = 1 << 20
_MAX_REGION_BYTES = 1 << 32
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_KEYS = ("title", "core", "clock_hz", "flash", "regions")
_REGION_KEYS = ("name", "bytes", "kind")


@dataclass(frozen=True)
class Region:
    """A block of RAM."""

    name: str
    bytes: int
    kind: str = "internal"


@dataclass(frozen=True)
class Board:
    """A board: what a program for it is compiled for, and what it may use."""

    name: str
    title: str
    core: str
    clock_hz: int
    flash_bytes: int
    regions: tuple[Region, ...]

    @property
    def ram_bytes(self) -> int:
        """Return the bytes of the largest region on the chip."""
        return max(region.bytes for region in self.regions if region.kind != "external")

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as data, for a manifest and for --json."""
        regions = [{"name": each.name, "bytes": each.bytes, "kind": each.kind} for each in self.regions]
        return {
            "name": self.name, "title": self.title, "core": self.core, "clock_hz": self.clock_hz,
            "flash_bytes": self.flash_bytes, "regions": regions,
        }  # fmt: skip


def known_boards(files: Sequence[Path] = ()) -> dict[str, Board]:
    """Return the boards by name, those of `files` after ours.

    Raises UsageError for a file that cannot be read, and for what in it is no board or has the name of another one.
    """
    boards = dict(_our_boards())
    for path in files:
        for name, board in _read(path).items():
            if name in boards:
                raise _refused(path, name, "a board of this name is known already", "choose another name")
            boards[name] = board
    return boards


def find_board(name: str, boards: Mapping[str, Board] | None = None) -> Board:
    """Return a board by its name; upper case and underscores are no obstacle. Raises UsageError naming the nearest ones."""
    boards = known_boards() if boards is None else boards
    spelled = name.strip().lower().replace("_", "-").replace(" ", "-")
    if spelled in boards:
        return boards[spelled]
    near = get_close_matches(spelled, boards, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UsageError(
        "DS0915", f"unknown board {name[:80]!r}",
        fix=f"{hint}known boards: {', '.join(boards)}; add yours with --boards FILE.toml",
    )  # fmt: skip


@cache
def _our_boards() -> Mapping[str, Board]:
    return _read(_OURS)


def _read(path: Path) -> dict[str, Board]:
    toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise UsageError(
                "DS0914", f"{path} has more than {_MAX_FILE_BYTES:,} bytes, which no table of boards needs"
            )
        content = toml.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError("DS0914", f"{path} cannot be read", why=error.strerror or str(error)) from error
    except (ValueError, RecursionError) as error:
        raise UsageError("DS0914", f"{path} is no TOML", why=str(error)[:200]) from error
    return {name: _Reader(path, name).board(entry) for name, entry in content.items()}


def _refused(path: Path, name: str, what: str, fix: str = "") -> UsageError:
    return UsageError("DS0914", f"the board {name[:80]!r} is not described well: {what}", where=str(path), fix=fix)


class _Reader:
    """Checks one entry of a file."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name

    def board(self, entry: Any) -> Board:
        if not _NAME.fullmatch(self._name):
            raise self._refuse("its name is none", "use small letters, digits and dashes, at most 64")
        if self._name in CORES:
            raise self._refuse("its name is a core's", "choose another name")
        self._check_keys(entry, _KEYS, _KEYS, "a board")
        core = self._text(entry, "core")
        if core not in CORES:
            hint = did_you_mean(core, CORES)
            raise self._refuse(f"unknown core {core[:40]!r}", f"{hint}known cores: {', '.join(CORES)}")
        clock = entry["clock_hz"]
        if type(clock) is not int or not 10_000 <= clock <= 10_000_000_000:
            raise self._refuse(f"clock_hz is {clock!r}", "give the frequency in Hz, as in 120_000_000")
        flash = self._bytes(entry["flash"], "flash", 1 << 28)
        return Board(self._name, self._text(entry, "title"), core, clock, flash, self._regions(entry["regions"]))

    def _regions(self, entries: Any) -> tuple[Region, ...]:
        if not isinstance(entries, list) or not 1 <= len(entries) <= 16:
            raise self._refuse(
                "regions is no list of 1 to 16 memories", 'as in regions = [{ name = "sram", bytes = "64K" }]'
            )
        regions = [self._region(entry) for entry in entries]
        names = [region.name for region in regions]
        if len(set(names)) != len(names):
            raise self._refuse(f"two of its regions have one name: {', '.join(names)}", "give each its own")
        if all(region.kind == "external" for region in regions):
            raise self._refuse("all its regions are external", "name the RAM on the chip, too")
        return tuple(regions)

    def _region(self, entry: Any) -> Region:
        self._check_keys(entry, _REGION_KEYS, ("name", "bytes"), "a region")
        name, kind = self._text(entry, "name"), entry.get("kind", "internal")
        if kind not in KINDS:
            raise self._refuse(f"the kind of region {name!r} is {str(kind)[:40]!r}", "use " + ", ".join(KINDS))
        largest = _MAX_REGION_BYTES if kind == "external" else 1 << 28
        return Region(name, self._bytes(entry["bytes"], f"region {name!r}", largest), kind)

    def _check_keys(self, entry: Any, known: Sequence[str], needed: Sequence[str], what: str) -> None:
        if not isinstance(entry, dict):
            raise self._refuse(f"{what} is {str(entry)[:40]!r}, and no table", "keys: " + ", ".join(known))
        unknown = [key for key in entry if key not in known]
        missing = [key for key in needed if key not in entry]
        if unknown:
            raise self._refuse(f"{what} has no key {unknown[0][:40]!r}", "keys: " + ", ".join(known))
        if missing:
            raise self._refuse(f"{what} needs the key {missing[0]!r}", "keys: " + ", ".join(known))

    def _text(self, entry: Mapping[str, Any], key: str) -> str:
        value = entry[key]
        if not isinstance(value, str) or not 0 < len(value) <= 100 or not value.isprintable():
            raise self._refuse(f"{key} is {str(value)[:40]!r}", "give a short text")
        return value

    def _bytes(self, value: Any, what: str, largest: int) -> int:
        count = (
            value
            if type(value) is int
            else parse_bytes(str(value), f"{what} of the board {self._name!r} in {self._path}")
        )
        if not 1024 <= count <= largest:
            raise self._refuse(f"{what} has {count:,} bytes", f"give 1 KiB to {largest >> 20} MiB")
        return count

    def _refuse(self, what: str, fix: str) -> UsageError:
        return _refused(self._path, self._name, what, fix)
