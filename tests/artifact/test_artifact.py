"""Artifacts are written whole or not at all, read with suspicion, and the same bytes for the same build."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from dsopt.artifact import Artifact, load_artifact, writing
from dsopt.artifact.reading import is_artifact
from dsopt.errors import ArtifactError, WriteError
from tests.artifact.samples import WEIGHTS, artifact

FORMS = ["folder", "one.dsopt"]


@pytest.fixture(params=FORMS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


def test_what_is_saved_is_loaded(place: Path) -> None:
    artifact().save(place)
    loaded = load_artifact(place)
    assert dict(loaded.files) == dict(artifact().files)
    assert {key: loaded.manifest[key] for key in artifact().manifest} == artifact().manifest
    assert loaded.manifest["schema"] == 1
    assert is_artifact(place)


def test_views_are_the_bytes_on_disk(place: Path) -> None:
    artifact().save(place)
    loaded = load_artifact(place)
    assert bytes(loaded.view("weights/0.bin")) == WEIGHTS
    assert bytes(loaded.view("empty")) == b""
    assert loaded.view("weights/0.bin") is loaded.view("weights/0.bin")


def test_a_folder_tells_where_its_files_are_and_an_archive_does_not(tmp_path: Path) -> None:
    artifact().save(tmp_path / "folder")
    artifact().save(tmp_path / "one.dsopt")
    assert load_artifact(tmp_path / "folder").path_of("weights/0.bin") == tmp_path / "folder" / "weights" / "0.bin"
    assert load_artifact(tmp_path / "one.dsopt").path_of("weights/0.bin") is None
    assert artifact().path_of("weights/0.bin") is None
    assert bytes(artifact().view("weights/0.bin")) == WEIGHTS


def test_the_same_build_gives_the_same_bytes_under_any_name(tmp_path: Path) -> None:
    artifact().save(tmp_path / "a.dsopt")
    reordered = Artifact(dict(reversed(artifact().manifest.items())), dict(reversed(artifact().files.items())))
    reordered.save(tmp_path / "another name.dsopt")
    load_artifact(tmp_path / "a.dsopt").save(tmp_path / "again.dsopt")
    contents = {path.read_bytes() for path in tmp_path.iterdir()}
    assert len(contents) == 1


def test_members_are_stored_aligned_and_without_a_date(tmp_path: Path) -> None:
    path = tmp_path / "a.dsopt"
    artifact().save(path)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            assert info.filename.startswith("artifact/")
            assert info.compress_type == zipfile.ZIP_STORED
            assert info.date_time == (1980, 1, 1, 0, 0, 0)
            if info.file_size:
                assert content.index(archive.read(info)) % 64 == 0
        assert archive.testzip() is None


def test_the_manifest_is_sorted_json_with_one_newline_at_its_end(tmp_path: Path) -> None:
    artifact().save(tmp_path / "a")
    text = (tmp_path / "a" / "manifest.json").read_text()
    assert text == json.dumps(json.loads(text), indent=1, sort_keys=True) + "\n"


def test_an_archive_packed_again_by_another_program_still_reads(tmp_path: Path) -> None:
    artifact().save(tmp_path / "folder")
    packed = tmp_path / "packed.dsopt"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((tmp_path / "folder").rglob("*")):
            archive.write(path, path.relative_to(tmp_path / "folder"))
    loaded = load_artifact(packed)
    assert loaded.files["weights/0.bin"] == WEIGHTS
    assert bytes(loaded.view("weights/0.bin")) == WEIGHTS


# ---- writing ----


def test_an_older_artifact_is_replaced_and_nothing_else_is_left(place: Path) -> None:
    artifact(target="mcu:cortex-m4").save(place)
    artifact().save(place)
    assert load_artifact(place).target == "cpu"
    assert os.listdir(place.parent) == [place.name]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    artifact().save(tmp_path / "empty")
    assert load_artifact(tmp_path / "empty").target == "cpu"


@pytest.mark.parametrize("name", ["notes.txt", "manifest.json"])
def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("{}")
    with pytest.raises(WriteError, match=r"DS0806.*no part of an artifact"):
        artifact().save(tmp_path / "mine")
    assert (tmp_path / "mine" / name).read_text() == "{}"


def test_a_users_file_inside_an_artifact_keeps_it_from_being_replaced(tmp_path: Path) -> None:
    artifact().save(tmp_path / "a")
    (tmp_path / "a" / "main.c").write_text("mine")
    with pytest.raises(WriteError, match=r"main\.c"):
        artifact().save(tmp_path / "a")


def test_a_file_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.dsopt").write_text("my diary")
    with pytest.raises(WriteError, match="DS0806"):
        artifact().save(tmp_path / "a.dsopt")
    assert (tmp_path / "a.dsopt").read_text() == "my diary"
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="is a file"):
        artifact().save(tmp_path / "file")
    (tmp_path / "folder.dsopt").mkdir()
    with pytest.raises(WriteError, match="is a folder"):
        artifact().save(tmp_path / "folder.dsopt")


def test_a_path_through_a_file_is_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("a", "a.dsopt"):
        with pytest.raises(WriteError, match="DS0807"):
            artifact().save(tmp_path / "file" / name)


def test_a_full_disk_leaves_nothing_behind(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.os, "fsync", full)
    with pytest.raises(WriteError, match="No space left on device"):
        artifact().save(place.parent / "new" / "folder" / place.name)
    assert os.listdir(place.parent) == []


class _Interrupting(Mapping[str, bytes]):
    """Files of which the last cannot be read because the user gives up."""

    def __init__(self, error: BaseException) -> None:
        self._files, self._error, self._read = dict(artifact().files), error, 0

    def __getitem__(self, name: str) -> bytes:
        self._read += 1
        if self._read > len(self._files) + 2:  # all were read once for their hashes
            raise self._error
        return self._files[name]

    def __iter__(self) -> Any:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()])
def test_an_interruption_leaves_the_old_artifact_and_nothing_else(place: Path, error: BaseException) -> None:
    artifact(target="mcu:cortex-m4").save(place)
    with pytest.raises(type(error)):
        Artifact(artifact().manifest, _Interrupting(error)).save(place)
    assert os.listdir(place.parent) == [place.name]
    assert load_artifact(place).target == "mcu:cortex-m4"


def test_an_interruption_between_the_renames_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact(target="mcu:cortex-m4").save(tmp_path / "a")
    rename: Callable[[Path, Path], Path] = Path.rename
    seen: list[Path] = []

    def second_fails(self: Path, target: Path) -> Path:
        seen.append(self)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(KeyboardInterrupt):
        artifact().save(tmp_path / "a")
    assert load_artifact(tmp_path / "a").target == "mcu:cortex-m4"
    assert os.listdir(tmp_path) == ["a"]


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    artifact(target="mcu:cortex-m4").save(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    artifact().save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert load_artifact(tmp_path / "real").target == "cpu"


# ---- reading ----


def test_a_missing_artifact_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="DS0801: there is no artifact at"):
        load_artifact(tmp_path / "nothing")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"hello", b"\x00" * 5000])
def test_what_is_no_artifact_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.dsopt").write_bytes(content)
    with pytest.raises(ArtifactError, match="DS0802"):
        load_artifact(tmp_path / "a.dsopt")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "manifest.json").write_bytes(content)
    with pytest.raises(ArtifactError, match="DS0802"):
        load_artifact(tmp_path / "folder")


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"it has no manifest\.json"):
        load_artifact(tmp_path)


def test_a_newer_artifact_is_refused(tmp_path: Path) -> None:
    artifact().save(tmp_path / "a")
    _edit_manifest(tmp_path / "a", schema=2)
    with pytest.raises(
        ArtifactError, match=r"DS0803: .* written by a newer dsopt: it has schema 2, and 1 is known here"
    ):
        load_artifact(tmp_path / "a")


def test_an_altered_file_is_refused_when_it_is_read(tmp_path: Path) -> None:
    artifact().save(tmp_path / "a")
    (tmp_path / "a" / "weights" / "0.bin").write_bytes(bytes(len(WEIGHTS)))
    loaded = load_artifact(tmp_path / "a")
    assert loaded.files["model.onnx"] == b"not a model"
    for read in (loaded.files.__getitem__, loaded.view, loaded.path_of):
        with pytest.raises(ArtifactError, match=r"weights/0.bin in .* is truncated or altered"):
            read("weights/0.bin")


def test_a_shortened_or_missing_file_is_refused_at_once(tmp_path: Path) -> None:
    artifact().save(tmp_path / "a")
    (tmp_path / "a" / "model.onnx").write_bytes(b"not")
    with pytest.raises(ArtifactError, match="it has 3 bytes instead of 11"):
        load_artifact(tmp_path / "a")
    (tmp_path / "a" / "model.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"model\.onnx in .* is missing"):
        load_artifact(tmp_path / "a")


def test_links_inside_an_artifact_are_refused(tmp_path: Path) -> None:
    artifact().save(tmp_path / "a")
    (tmp_path / "secret").write_bytes(b"not a model")
    (tmp_path / "a" / "model.onnx").unlink()
    (tmp_path / "a" / "model.onnx").symlink_to(tmp_path / "secret")
    with pytest.raises(ArtifactError, match=r"DS0805.*is a link"):
        load_artifact(tmp_path / "a")


def test_a_pipe_inside_an_artifact_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    artifact().save(tmp_path / "a")
    (tmp_path / "a" / "model.onnx").unlink()
    os.mkfifo(tmp_path / "a" / "model.onnx")
    with pytest.raises(ArtifactError, match="DS0805"):
        load_artifact(tmp_path / "a")
    os.mkfifo(tmp_path / "pipe.dsopt")
    with pytest.raises(ArtifactError, match="DS0801"):
        load_artifact(tmp_path / "pipe.dsopt")


def test_members_that_the_manifest_does_not_describe_are_refused(tmp_path: Path) -> None:
    artifact().save(tmp_path / "a.dsopt")
    with zipfile.ZipFile(tmp_path / "a.dsopt", "a") as archive:
        archive.writestr("artifact/extra", b"")
    with pytest.raises(ArtifactError, match="'extra', which its manifest does not describe"):
        load_artifact(tmp_path / "a.dsopt")


@pytest.mark.parametrize("name", ["../outside", "/absolute", "artifact/../../up"])
def test_members_that_leave_the_archive_are_refused(tmp_path: Path, name: str) -> None:
    artifact().save(tmp_path / "a.dsopt")
    with zipfile.ZipFile(tmp_path / "a.dsopt", "a") as archive:
        archive.writestr(name, b"")
    with pytest.raises(ArtifactError, match="DS0805"):
        load_artifact(tmp_path / "a.dsopt")


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.dsopt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("artifact/manifest.json", b"{}")
        archive.writestr("artifact/bomb", bytes(128 << 20))
    with pytest.raises(ArtifactError, match=r"DS0805.*would unpack to"):
        load_artifact(tmp_path / "a.dsopt")


def test_a_deeply_nested_manifest_is_refused(tmp_path: Path) -> None:
    artifact().save(tmp_path / "a")
    text = (tmp_path / "a" / "manifest.json").read_text()
    deep = text.replace('"output_tree": "output"', '"output_tree": ' + '{"tuple": [' * 400 + '"output"' + "]}" * 400)
    assert deep != text
    (tmp_path / "a" / "manifest.json").write_text(deep)
    with pytest.raises(ArtifactError, match="nested more than 100 deep"):
        load_artifact(tmp_path / "a")
    (tmp_path / "a" / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(ArtifactError, match="DS0802"):
        load_artifact(tmp_path / "a")


def test_a_file_that_is_replaced_after_opening_is_refused(tmp_path: Path) -> None:
    artifact().save(tmp_path / "a.dsopt")
    loaded = load_artifact(tmp_path / "a.dsopt")
    (tmp_path / "a.dsopt").write_bytes(b"short")
    with pytest.raises(ArtifactError):
        loaded.files["weights/0.bin"]
    with pytest.raises(ArtifactError):
        loaded.view("weights/0.bin")


def _edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
