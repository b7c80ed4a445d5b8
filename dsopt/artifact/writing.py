"""Write an artifact beside its place and rename it there at the end, so that what is there is whole at any moment."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from dsopt.artifact.manifest import KIND, MANIFEST, MAX_MANIFEST_BYTES, ROOT
from dsopt.errors import WriteError

ALIGNMENT = 64
"""Members of a .dsopt file begin at multiples of this, so that mapped weights suit vector loads."""

_DATE = (1980, 1, 1, 0, 0, 0)
_PADDING_FIELD = 0xD935  # the extra field that Android's zipalign pads with
_ZIP64_FIELD_BYTES = 20


def write_folder(path: Path, manifest: bytes, files: Mapping[str, bytes]) -> None:
    """Write the files as a folder at `path`. An artifact that is there is replaced. Raises WriteError."""
    path = _resolved(path)
    _check_replaceable_folder(path)
    with _explained(path), _parent(path) as parent:
        new = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=parent))
        try:
            new.chmod(0o777 & ~_umask())
            for name, content in _members(manifest, files):
                place = new / name
                place.parent.mkdir(parents=True, exist_ok=True)
                _write_file(place, content)
            _swap_folder(new, path)
        finally:
            shutil.rmtree(new, ignore_errors=True)


def write_archive(path: Path, manifest: bytes, files: Mapping[str, bytes]) -> None:
    """Write the files as one stored zip at `path`. An artifact that is there is replaced. Raises WriteError."""
    path = _resolved(path)
    _check_replaceable_file(path)
    with _new_file(path) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for member, content in _members(manifest, files):
            _store(archive, ROOT + member, content)


@contextmanager
def _new_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file that becomes `path` when all went well."""
    with _explained(path), _parent(path) as parent:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=parent)
        new = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            new.chmod(0o666 & ~_umask())
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)


def replace_file(path: Path, content: bytes) -> None:
    """Write one file beside `path` and rename it there. Raises WriteError, and nothing is then left behind."""
    path = _resolved(path)
    if path.is_dir():
        raise WriteError("DS0806", f"{path} is a folder", fix="Name a file.")
    with _new_file(path) as stream:
        stream.write(content)


def create_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Write files as a new folder, whole or not at all. Raises WriteError, also where something else than an empty folder is there."""
    path = _resolved(path)
    with _explained(path):
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise WriteError(
                "DS0808",
                f"{path} exists already, and was left alone",
                fix="Name a new folder, or remove this one first.",
            )
    with _explained(path), _parent(path) as parent:
        new = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=parent))
        try:
            new.chmod(0o777 & ~_umask())
            for name in sorted(files):
                place = new / name
                place.parent.mkdir(parents=True, exist_ok=True)
                _write_file(place, files[name])
            new.rename(path)  # an empty folder that is there gives way; one that was filled meanwhile does not
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _members(manifest: bytes, files: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    yield MANIFEST, manifest
    for name in sorted(files):
        yield name, files[name]


def _store(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Append a member whose bytes begin at a multiple of ALIGNMENT: the extra field takes up the slack."""
    info = zipfile.ZipInfo(name, _DATE)
    info.create_system = 3
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    info.file_size = len(content)
    is_large = len(content) * 1.05 > zipfile.ZIP64_LIMIT  # the rule by which ZipFile.writestr adds a zip64 field
    assert archive.fp is not None
    start = archive.fp.tell() + 30 + len(name.encode()) + (_ZIP64_FIELD_BYTES if is_large else 0)
    slack = -start % ALIGNMENT
    slack += ALIGNMENT if 0 < slack < 4 else 0
    if slack:
        info.extra = _PADDING_FIELD.to_bytes(2, "little") + (slack - 4).to_bytes(2, "little") + bytes(slack - 4)
    archive.writestr(info, content)


def _write_file(place: Path, content: bytes) -> None:
    with place.open("xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _swap_folder(new: Path, path: Path) -> None:
    """Rename `new` to `path`; what is there steps aside first, and comes back if the second step fails."""
    if not path.exists():
        new.rename(path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
    try:
        path.rename(old / path.name)
        new.rename(path)
    except BaseException:
        if (old / path.name).exists() and not path.exists():
            (old / path.name).rename(path)
        raise
    finally:
        # When the old artifact could neither be replaced nor put back, it stays where it is rather than be deleted.
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)


def _resolved(path: Path) -> Path:
    """Follow links, so that a link to a folder stays a link and the folder behind it is replaced."""
    with _explained(path):
        return path.resolve()


@contextmanager
def _parent(path: Path) -> Iterator[Path]:
    """Make the folders above `path`, and take away those that were made if what follows fails."""
    missing = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path.parent
    except BaseException:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        raise


def _umask() -> int:
    # There is no call that only reads it.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _check_replaceable_folder(path: Path) -> None:
    """Raise WriteError unless `path` is free, an empty folder, or a folder that holds an artifact and nothing else."""
    with _explained(path):
        if not path.exists():
            return
        if not path.is_dir():
            raise WriteError("DS0806", f"{path} is a file", fix="Name a folder, or a file that ends in .dsopt.")
        found = {place.relative_to(path).as_posix() for place in path.rglob("*") if not place.is_dir()}
        if not found:
            return
        strange = sorted(found - _described(path / MANIFEST)) if MANIFEST in found else sorted(found)
    if strange:
        raise WriteError(
            "DS0806", f"{path} holds {strange[0]!r}, which is no part of an artifact, and was left alone",
            why="Writing the artifact would delete it.", fix="Name another folder, or move these files away.",
        )  # fmt: skip


def _described(manifest: Path) -> set[str]:
    """Return the names of the files that a manifest describes and its own; nothing if it is no manifest of ours."""
    if manifest.stat().st_size > MAX_MANIFEST_BYTES:
        return set()
    try:
        content = json.loads(manifest.read_bytes())
    except (ValueError, RecursionError):
        return set()
    if not isinstance(content, dict) or content.get("kind") != KIND or not isinstance(content.get("files"), dict):
        return set()
    return {MANIFEST, *content["files"]}


def _check_replaceable_file(path: Path) -> None:
    """Raise WriteError unless `path` is free, an empty file, or a file that begins as a .dsopt file does."""
    with _explained(path):
        if not path.exists():
            return
        if path.is_dir():
            raise WriteError(
                "DS0806", f"{path} is a folder", fix="Name a file, or a folder that does not end in .dsopt."
            )
        head = b""
        if path.stat().st_size and path.is_file():
            with path.open("rb") as stream:
                head = stream.read(30 + len(ROOT))
        if not path.is_file() or (head and not (head[:4] == b"PK\x03\x04" and head[30:] == ROOT.encode())):
            raise WriteError(
                "DS0806",
                f"{path} is no artifact of dsopt, and was left alone",
                fix="Name another file, or remove this one first.",
            )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WriteError(
            "DS0807", f"{path} cannot be written", why=error.strerror or str(error),
            fix="Free some space or choose a place that you may write to; nothing was left behind.",
        ) from error  # fmt: skip
