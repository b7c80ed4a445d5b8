"""Read zip archives from strangers: bounded in members, bytes and expansion, with no name that leaves the archive."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dsopt.errors import ReadError

_ENCRYPTED = 0x1
_LOCAL_HEADER_BYTES = 30
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, ValueError, IndexError, OverflowError,
)  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What a file may ask of us. Torch stores members uncompressed, so honest archives hardly expand at all.

    members: files in one archive.  expansion: unpacked bytes for each byte on disk.  slack_bytes: unpacked bytes that any
    archive may have, however small.  json_bytes: one JSON document.  pickle_bytes: one pickled tensor index.
    """

    members: int = 200_000
    expansion: int = 64
    slack_bytes: int = 64 * 2**20
    json_bytes: int = 512 * 2**20
    pickle_bytes: int = 64 * 2**20


LIMITS = Limits()


class BoundedZip:
    """An open zip archive whose table of contents has been checked; members are named without the common top folder."""

    def __init__(self, archive: zipfile.ZipFile, label: str, limits: Limits) -> None:
        self._archive, self._label, self.limits = archive, label, limits
        infos = [info for info in archive.infolist() if not info.filename.endswith("/")]
        _check_contents(infos, label, archive_bytes(archive), limits)
        self.top = _top_folder([info.filename for info in infos])
        self._members = {info.filename[len(self.top) :]: info for info in infos}
        self.names: tuple[str, ...] = tuple(sorted(self._members))

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def byte_count(self, name: str) -> int:
        """Return the unpacked length of a member in bytes."""
        return self._members[name].file_size

    def stored_at(self, name: str) -> int | None:
        """Return where a member's bytes begin in the file, so that they can be mapped; None if they are packed."""
        info, stream = self._members[name], self._archive.fp
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            return None
        assert stream is not None
        with _damage_explained(self._label, name):
            stream.seek(info.header_offset)
            header = stream.read(_LOCAL_HEADER_BYTES)
            if len(header) != _LOCAL_HEADER_BYTES or header[:4] != b"PK\x03\x04":
                raise EOFError
        # The local header has a name and an extra field of its own, which may be longer than those in the table of contents.
        lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        return info.header_offset + _LOCAL_HEADER_BYTES + lengths

    def read(self, name: str, limit: int | None = None) -> bytes:
        """Return a member's bytes. Raises ReadError if it is missing, damaged or longer than `limit`."""
        return bytes(self.read_into_buffer(name, limit))

    def read_into_buffer(self, name: str, limit: int | None = None) -> bytearray:
        """Return a member as writable bytes, read once and checked against its CRC."""
        if name not in self._members:
            raise ReadError("DS0141", f"{self._label} has no member {name!r}", fix=_SAVE_AGAIN)
        info = self._members[name]
        if limit is not None and info.file_size > limit:
            raise ReadError(
                "DS0142", f"{name} in {self._label} has {info.file_size:,} bytes; at most {limit:,} are read"
            )
        buffer = bytearray(info.file_size)
        view, filled = memoryview(buffer), 0
        with _damage_explained(self._label, name), self._archive.open(info) as stream:
            # A member may hold fewer bytes than the table says, and the CRC is compared at the end of the stream.
            while filled < len(buffer) and (count := stream.readinto(view[filled:])):  # type: ignore[attr-defined]
                filled += count
            if filled != len(buffer) or stream.read(1):
                raise EOFError
        view.release()
        return buffer


_SAVE_AGAIN = "Copy or download the file again, or save it again with torch.export.save."


@contextmanager
def open_zip(source: Path | bytes, label: str = "", limits: Limits = LIMITS) -> Iterator[BoundedZip]:
    """Open a zip file, or bytes holding one, for bounded reading.

    Raises ReadError: DS0140 if it cannot be opened, DS0141 if it is damaged, DS0142 if it asks for more than `limits`.
    """
    stream: IO[bytes]
    if isinstance(source, bytes):
        stream, label = io.BytesIO(source), label or "the archive"
    else:
        label = label or str(source)
        try:
            stream = source.open("rb")
        except OSError as error:
            raise ReadError("DS0140", f"{source} cannot be read: {error.strerror or error}") from error
    with stream:
        with _damage_explained(label):
            archive = zipfile.ZipFile(stream)
        with archive:
            yield BoundedZip(archive, label, limits)


def archive_bytes(archive: zipfile.ZipFile) -> int:
    """Return the length in bytes of the file that an archive is read from."""
    stream = archive.fp
    assert stream is not None
    position = stream.tell()
    length = stream.seek(0, io.SEEK_END)
    stream.seek(position)
    return length


@contextmanager
def _damage_explained(label: str, member: str = "") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ReadError("DS0140", f"{label} cannot be read: {error.strerror or error}") from error
    except _DAMAGE as error:
        what = f"{member} in {label}" if member else label
        raise ReadError("DS0141", f"{what} is truncated or altered", why=str(error), fix=_SAVE_AGAIN) from error


def _check_contents(infos: list[zipfile.ZipInfo], label: str, file_bytes: int, limits: Limits) -> None:
    if len(infos) > limits.members:
        raise ReadError("DS0142", f"{label} has {len(infos):,} members; at most {limits.members:,} are read")
    names = set()
    for info in infos:
        if problem := _name_problem(info.filename):
            raise ReadError("DS0142", f"{label} has a member named {info.filename[:80]!r}, which {problem}")
        if info.filename in names:
            raise ReadError("DS0142", f"{label} has two members named {info.filename[:80]!r}", why=_TWO_READERS)
        names.add(info.filename)
        if info.flag_bits & _ENCRYPTED:
            raise ReadError(
                "DS0142", f"{info.filename} in {label} is encrypted", fix="Unpack and pack it without a password."
            )
    # The end of a cut file may hold another archive as a member, whose own table is then found instead.
    if infos and min(info.header_offset for info in infos) != 0:
        raise ReadError("DS0141", f"{label} is truncated or altered: its first bytes are of no member", fix=_SAVE_AGAIN)
    # Overlapping members claim more packed bytes than the file has; that is how a small file unpacks to terabytes.
    if sum(info.compress_size for info in infos) > file_bytes:
        raise ReadError("DS0141", f"{label} is truncated or its members overlap", fix=_SAVE_AGAIN)
    unpacked, allowed = sum(info.file_size for info in infos), max(limits.slack_bytes, limits.expansion * file_bytes)
    if unpacked > allowed:
        what = f"{label} has {file_bytes:,} bytes and would unpack to {unpacked:,}"
        raise ReadError(
            "DS0142", what, why=f"More than {limits.expansion} times its size is taken for a decompression bomb."
        )


_TWO_READERS = "Two programs reading such a file may each see another one of the two."


def _name_problem(name: str) -> str:
    if not name:
        return "is empty"
    parts = name.split("/")
    if ".." in parts or name.startswith("/") or "\\" in name or (len(parts[0]) > 1 and parts[0][1] == ":"):
        return "leaves the archive"
    if not name.isprintable():
        return "holds control characters"
    return "is too long" if len(name) > 4096 else ""


def _top_folder(names: list[str]) -> str:
    """Return the folder with a trailing slash that holds all members, as torch writes it; empty if there is none."""
    tops = {name.split("/", 1)[0] for name in names if "/" in name}
    return f"{tops.pop()}/" if len(tops) == 1 and all("/" in name for name in names) else ""
