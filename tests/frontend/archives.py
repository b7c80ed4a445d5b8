"""Alter archives member by member, for tests of readers that must not trust them."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Edit = bytes | Callable[[bytes], bytes] | None


class Bomb:
    """An object whose unpickling makes a folder: proof that code of the file has run."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.marker,)


def torch_bytes(value: object) -> bytes:
    """Return what torch.save writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def altered(source: Path, target: Path, edits: dict[str, Edit]) -> Path:
    """Copy an archive with some members replaced, edited, added (bytes) or left out (None); names are without the top folder."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        top = old.namelist()[0].split("/")[0]
        left = dict(edits)
        for name in old.namelist():
            short = name.removeprefix(f"{top}/")
            edit = left.pop(short, old.read(name))
            if edit is not None:
                new.writestr(name, edit if isinstance(edit, bytes) else edit(old.read(name)))
        for short, edit in left.items():
            assert isinstance(edit, bytes), f"no member {short}"
            new.writestr(f"{top}/{short}", edit)
    return target


def json_edit(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    """Return an edit that parses a member as JSON, lets `change` work on it, and writes it again."""

    def edit(data: bytes) -> bytes:
        document = json.loads(data)
        change(document)
        return json.dumps(document).encode()

    return edit


def text_edit(*pairs: tuple[str, str]) -> Callable[[bytes], bytes]:
    """Return an edit that replaces texts, each of which must be there."""

    def edit(data: bytes) -> bytes:
        text = data.decode()
        for old, new in pairs:
            assert old in text, old
            text = text.replace(old, new)
        return text.encode()

    return edit
