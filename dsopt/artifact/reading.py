"""Artifacts on disk: the manifest is read at once, every other file when it is asked for, and compared with its hash first."""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dsopt.artifact.manifest import MANIFEST, MAX_FILES, MAX_MANIFEST_BYTES, ROOT, SUFFIX, read_manifest
from dsopt.errors import ArtifactError, ReadError
from dsopt.zip_limits import LIMITS, open_zip

_LIMITS = replace(LIMITS, members=MAX_FILES + 1, json_bytes=MAX_MANIFEST_BYTES)
_AGAIN = "Copy the artifact again, or compile the model again."


class LazyFiles(Mapping[str, bytes]):
    """The files of a stored artifact by name, without the manifest. Reading one raises ArtifactError if it was altered.

    offsets: where each file's bytes begin in the .dsopt file; None for a folder, and for members that some other program packed.
    """

    def __init__(self, path: Path, described: Mapping[str, Any], offsets: Mapping[str, int | None] | None) -> None:
        self._path, self._described, self._offsets = path, described, offsets
        self._mapped: dict[str, memoryview] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._described))

    def __len__(self) -> int:
        return len(self._described)

    def __contains__(self, name: object) -> bool:
        return name in self._described

    def __getitem__(self, name: str) -> bytes:
        byte_count = int(self._described[name]["bytes"])
        source, offset = self._place(name)
        if offset is None:
            with _explained(self._path), open_zip(source, str(self._path), _LIMITS) as archive:
                content = archive.read(name, byte_count)
        else:
            content = _read_part(source, self._path, offset, byte_count)
        self._verify(name, content)
        return content

    def view(self, name: str) -> memoryview:
        """Return a file's bytes as a mapping of the disk, compared with its hash once."""
        if name not in self._mapped:
            byte_count = int(self._described[name]["bytes"])
            source, offset = self._place(name)
            # An empty file cannot be mapped, and a packed one is not on the disk as it is.
            if byte_count == 0 or offset is None:
                return memoryview(self[name])
            view = _map_part(source, self._path, offset, byte_count)
            self._verify(name, view)
            self._mapped[name] = view
        return self._mapped[name]

    def path_of(self, name: str) -> Path | None:
        """Return where a file of a folder lies, after comparing its hash; None inside a .dsopt file."""
        if self._offsets is not None:
            return None
        self.view(name)
        return self._path / name

    def _place(self, name: str) -> tuple[Path, int | None]:
        """Return the file on disk that holds a member, and where it begins there (None: it must be unpacked)."""
        if self._offsets is not None:
            return self._path, self._offsets[name]
        return _plain_file(self._path, name, int(self._described[name]["bytes"])), 0

    def _verify(self, name: str, content: bytes | memoryview) -> None:
        wanted = self._described[name]
        if len(content) != wanted["bytes"] or hashlib.sha256(content).hexdigest() != wanted["sha256"]:
            raise ArtifactError("DS0802", f"{name} in {self._path} is truncated or altered", fix=_AGAIN)


def is_artifact(path: Path) -> bool:
    """Tell whether a path is meant as an artifact: a folder, a .dsopt file, or a file that begins as one."""
    if path.is_dir() or path.suffix == SUFFIX:
        return True
    try:
        with path.open("rb") as stream:
            head = stream.read(30 + len(ROOT))
    except (OSError, ValueError):
        return False
    return head[:4] == b"PK\x03\x04" and head[30:] == ROOT.encode()


def open_files(path: Path) -> tuple[dict[str, Any], LazyFiles]:
    """Return the manifest and the files of a folder or .dsopt file. Raises ArtifactError."""
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError as error:
        raise ArtifactError("DS0801", f"there is no artifact at {path}", fix="Check the path.") from error
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    return _open_folder(path) if is_folder else _open_archive(path)


def _open_folder(path: Path) -> tuple[dict[str, Any], LazyFiles]:
    if not (path / MANIFEST).exists():
        raise ArtifactError(
            "DS0802",
            f"{path} is no artifact of dsopt: it has no {MANIFEST}",
            fix="Give what dsopt compile wrote with -o.",
        )
    manifest_path = _plain_file(path, MANIFEST)
    byte_count = manifest_path.lstat().st_size
    if byte_count > MAX_MANIFEST_BYTES:
        raise ArtifactError(
            "DS0805", f"the manifest of {path} has {byte_count:,} bytes; at most {MAX_MANIFEST_BYTES:,} are read"
        )
    manifest = read_manifest(_read_part(manifest_path, path, 0, byte_count), str(path))
    for name, entry in sorted(manifest["files"].items()):
        _plain_file(path, name, entry["bytes"])
    return manifest, LazyFiles(path, manifest["files"], None)


def _open_archive(path: Path) -> tuple[dict[str, Any], LazyFiles]:
    if not stat.S_ISREG(path.stat().st_mode):
        raise ArtifactError("DS0801", f"{path} is neither a folder nor a file")
    with _explained(path), open_zip(path, str(path), _LIMITS) as archive:
        if MANIFEST not in archive:
            raise ArtifactError(
                "DS0802",
                f"{path} is no artifact of dsopt: it has no {MANIFEST}",
                fix="Give what dsopt compile wrote with -o.",
            )
        manifest = read_manifest(archive.read(MANIFEST, MAX_MANIFEST_BYTES), str(path))
        described = manifest["files"]
        if extra := sorted({*archive.names} - {*described, MANIFEST}):
            raise ArtifactError(
                "DS0802", f"{path} holds {extra[0]!r}, which its manifest does not describe", fix=_AGAIN
            )
        for name, entry in sorted(described.items()):
            if name not in archive or archive.byte_count(name) != entry["bytes"]:
                raise ArtifactError("DS0802", f"{name} in {path} is missing, truncated or altered", fix=_AGAIN)
        return manifest, LazyFiles(path, described, {name: archive.stored_at(name) for name in described})


def _plain_file(root: Path, name: str, byte_count: int | None = None) -> Path:
    """Return root/name after checking that no part of it is a link and that it is a file of the right length."""
    place, parts = root, name.split("/")
    for number, part in enumerate(parts, start=1):
        place = place / part
        try:
            found = place.lstat()
        except OSError as error:
            raise ArtifactError(
                "DS0802", f"{name} in {root} is missing", why=error.strerror or "", fix=_AGAIN
            ) from error
        is_right = stat.S_ISREG(found.st_mode) if number == len(parts) else stat.S_ISDIR(found.st_mode)
        if not is_right:
            raise ArtifactError(
                "DS0805",
                f"{name} in {root} is a link or something else than a plain file",
                why="Links may lead out of the artifact.",
            )
    if byte_count is not None and found.st_size != byte_count:
        raise ArtifactError(
            "DS0802",
            f"{name} in {root} is truncated or altered: it has {found.st_size:,} bytes instead of {byte_count:,}",
            fix=_AGAIN,
        )
    return place


def _read_part(source: Path, label: Path, offset: int, byte_count: int) -> bytes:
    try:
        with source.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size < offset + byte_count:
                return b""  # replaced by a shorter file since it was opened; its hash will not fit
            stream.seek(offset)
            return stream.read(byte_count)
    except (OSError, MemoryError) as error:
        raise _unreadable(label, error) from error


def _map_part(source: Path, label: Path, offset: int, byte_count: int) -> memoryview:
    """Map bytes of a file read-only; the mapping lives as long as the view."""
    start = offset - offset % mmap.ALLOCATIONGRANULARITY
    try:
        with source.open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), offset - start + byte_count, access=mmap.ACCESS_READ, offset=start)
    except (OSError, ValueError) as error:
        raise _unreadable(label, error) from error
    return memoryview(mapped)[offset - start : offset - start + byte_count]


def _unreadable(path: Path, error: BaseException) -> ArtifactError:
    return ArtifactError("DS0801", f"{path} cannot be read", why=getattr(error, "strerror", None) or str(error))


class _explained:  # noqa: N801  a context manager, used as a word
    """Turn what the zip reader says of any file into what it means for an artifact."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, ReadError) or isinstance(error, ArtifactError):
            return
        code = {"DS0140": "DS0801", "DS0142": "DS0805"}.get(error.code, "DS0802")
        what = error.what if code != "DS0802" else f"{self._path} is truncated or altered, or no artifact of dsopt"
        raise ArtifactError(code, what, where=error.where, why=error.why, fix=_AGAIN) from error
