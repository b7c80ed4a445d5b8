"""The native counter is built once, into a cache that may be missing, read-only or shared."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsopt.simulate import host_compiler


def test_the_counter_is_built_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    built = host_compiler.block_counter_library()
    assert built is not None
    assert built.parent == tmp_path / "dsopt"
    assert sorted(path.name for path in built.parent.iterdir()) == [built.name]
    monkeypatch.setattr(host_compiler, "host_compilers", lambda: ())
    assert host_compiler.block_counter_library() == built


@pytest.mark.parametrize("commands", [(), (("/nowhere/cc",),), (("false",),)])
def test_without_a_working_compiler_there_is_no_library(
    commands: tuple[tuple[str, ...], ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(host_compiler, "host_compilers", lambda: commands)
    assert host_compiler.block_counter_library() is None
    assert list((tmp_path / "dsopt").iterdir()) == []


def test_the_second_compiler_is_tried_after_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = host_compiler.host_compilers()
    monkeypatch.setattr(host_compiler, "host_compilers", lambda: (("false",), *found))
    assert host_compiler.block_counter_library() is not None


def test_a_cache_that_cannot_be_made_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert host_compiler.block_counter_library() is None


def test_a_relative_cache_folder_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert host_compiler.cache_folder() == Path.home() / ".cache" / "dsopt"
