"""Read weights kept beside a model file, from its own folder and from nowhere else."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

from dsopt.errors import ReadError

_FIX = "Keep the weights in a file beside the model and name it relative to the model's folder."


class ExternalData:
    """The files of one model's folder. A model that came as bytes has no folder, and none of them is read."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def read(self, entries: Mapping[str, str], expected_bytes: int, tensor: str) -> bytearray:
        """Return the bytes of one tensor.

        entries: location, offset and length as the file gives them.  Raises ReadError DS0194 for a location outside the
        folder, a link, a missing file, or bytes that are not there.
        """
        location = entries.get("location", "")
        if self._folder is None:
            raise _refused(
                tensor, location, "the model was given as bytes, so it has no folder", "Read it from its path."
            )
        offset, length = _number(entries, "offset", 0, tensor), _number(entries, "length", expected_bytes, tensor)
        if length != expected_bytes:
            raise _refused(tensor, location, f"it gives {length:,} bytes and the shape needs {expected_bytes:,}", _FIX)
        path = self._folder.joinpath(*_parts(location, tensor))
        self._refuse_links(path, location, tensor)
        try:
            # O_NOFOLLOW closes the gap between the check above and the opening; it does not exist on Windows.
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise _refused(tensor, location, error.strerror or str(error), _FIX) from error
        with os.fdopen(descriptor, "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise _refused(tensor, location, "it is not a regular file", _FIX)
            if offset + length > status.st_size:
                why = f"the file has {status.st_size:,} bytes and {offset + length:,} are needed"
                raise _refused(tensor, location, why, "Copy the file again: it is truncated.")
            stream.seek(offset)
            buffer = bytearray(length)
            if stream.readinto(buffer) != length:
                raise _refused(tensor, location, "the file has become shorter", "Copy the file again.")
        return buffer

    def _refuse_links(self, path: Path, location: str, tensor: str) -> None:
        assert self._folder is not None
        step = path
        while step != self._folder:
            if step.is_symlink():
                raise _refused(
                    tensor, location, "it is a symbolic link, which may lead out of the model's folder", _FIX
                )
            step = step.parent


def _parts(location: str, tensor: str) -> tuple[str, ...]:
    path = PurePosixPath(location.replace("\\", "/"))
    if not path.parts or path.is_absolute() or PureWindowsPath(location).drive or ".." in path.parts:
        raise _refused(tensor, location, "it leaves the model's folder", _FIX)
    if not location.isprintable():
        raise _refused(tensor, location, "it holds control characters", _FIX)
    return path.parts


def _number(entries: Mapping[str, str], key: str, default: int, tensor: str) -> int:
    text = entries.get(key, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise _refused(tensor, entries.get("location", ""), f"its {key} is {text[:40]!r}", _FIX)
    return int(text)


def _refused(tensor: str, location: str, why: str, fix: str) -> ReadError:
    what = f"the weights of {tensor!r} cannot be read from {location[:200]!r}"
    return ReadError("DS0194", what, why=why, fix=fix)
