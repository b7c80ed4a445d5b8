"""Altered artifacts end in an ArtifactError, whatever was altered: nothing else, and no wrong bytes."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dsopt.artifact import load_artifact
from dsopt.artifact.manifest import manifest_bytes, read_manifest
from dsopt.errors import ArtifactError
from tests.artifact.samples import artifact

with tempfile.TemporaryDirectory() as _folder:
    artifact().save(Path(_folder) / "a.dsopt")
    WHOLE = (Path(_folder) / "a.dsopt").read_bytes()
    artifact().save(Path(_folder) / "b")
    MANIFEST = json.loads((Path(_folder) / "b" / "manifest.json").read_bytes())


def _reads_as_saved_or_is_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.dsopt"
        path.write_bytes(content)
        try:
            loaded = load_artifact(path)
            assert {name: bytes(loaded.view(name)) for name in loaded.files} == dict(artifact().files)
            assert dict(loaded.files) == dict(artifact().files)
        except ArtifactError as error:
            assert error.what


@given(st.integers(0, len(WHOLE) - 1))
def test_truncated_archives_are_refused(length: int) -> None:
    _reads_as_saved_or_is_refused(WHOLE[:length])


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(1, 255)), min_size=1, max_size=4))
def test_archives_with_flipped_bits_are_refused_or_read_right(flips: list[tuple[int, int]]) -> None:
    content = bytearray(WHOLE)
    for position, bits in flips:
        content[position] ^= bits
    _reads_as_saved_or_is_refused(bytes(content))


# The table of contents and the headers are a small part of the file, so that most flips above miss them.
TABLE = WHOLE.index(b"PK\x01\x02")


@given(st.lists(st.tuples(st.integers(TABLE, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_archives_with_an_altered_table_of_contents_are_refused_or_read_right(changes: list[tuple[int, int]]) -> None:
    content = bytearray(WHOLE)
    for position, value in changes:
        content[position] = value
    _reads_as_saved_or_is_refused(bytes(content))


@given(st.binary(max_size=300))
def test_bytes_that_are_no_manifest_are_refused(content: bytes) -> None:
    try:
        read_manifest(content, "here")
    except ArtifactError as error:
        assert error.what


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in children for place in _places(child, (*path, key)))]


@given(st.sampled_from(_places(MANIFEST)[1:]), JSON)
def test_manifests_with_any_value_in_any_place_are_refused_or_hold_together(place: tuple[Any, ...], value: Any) -> None:
    changed = json.loads(json.dumps(MANIFEST))
    parent = changed
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = value
    try:
        read_manifest(manifest_bytes(changed), "here")
    except ArtifactError as error:
        assert error.what


def test_a_member_without_a_name_is_refused() -> None:
    content = bytearray(WHOLE)
    entry = WHOLE.index(b"artifact/empty", TABLE) - 46
    assert content[entry + 28 : entry + 32] == bytes([len("artifact/empty"), 0, *content[entry + 30 : entry + 32]])
    extra = int.from_bytes(content[entry + 30 : entry + 32], "little") + len("artifact/empty")
    content[entry + 28 : entry + 32] = bytes(2) + extra.to_bytes(2, "little")
    _reads_as_saved_or_is_refused(bytes(content))
