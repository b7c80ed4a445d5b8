"""C files are compiled once, into a cache that may be missing, read-only or shared."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from dsopt import native
from dsopt.simulate.host_compiler import block_counter_library


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "the_answer.c"
    path.write_text("int answer(void) { return 42; }\n")
    return path


def test_a_library_is_built_once_and_kept(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = native.native_library(source)
    assert built is not None
    assert built.parent == source.parent / "cache" / "dsopt"
    assert built.name.startswith("the-answer-")
    assert [path.name for path in built.parent.iterdir()] == [built.name]
    assert ctypes.CDLL(str(built)).answer() == 42
    monkeypatch.setattr(native, "host_compilers", lambda: ())
    assert native.native_library(source) == built


def test_a_changed_source_is_built_again(source: Path) -> None:
    before = native.native_library(source)
    source.write_text("int answer(void) { return 43; }\n")
    after = native.native_library(source)
    assert after not in (None, before)
    assert ctypes.CDLL(str(after)).answer() == 43


def test_several_files_make_one_library(source: Path) -> None:
    other = source.with_name("other.c")
    other.write_text("int other(void) { return 7; }\n")
    library = ctypes.CDLL(str(native.native_library(source, other)))
    assert (library.answer(), library.other()) == (42, 7)


@pytest.mark.parametrize("commands", [(), (("/nowhere/cc",),), (("false",),)])
def test_without_a_working_compiler_there_is_no_library(
    commands: tuple[tuple[str, ...], ...], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "host_compilers", lambda: commands)
    assert native.native_library(source) is None
    assert list((source.parent / "cache" / "dsopt").iterdir()) == []


def test_the_second_compiler_is_tried_after_the_first(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = native.host_compilers()
    monkeypatch.setattr(native, "host_compilers", lambda: (("false",), *found))
    assert native.native_library(source) is not None


def test_a_cache_that_cannot_be_made_is_no_error(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(source))
    assert native.native_library(source) is None


def test_a_relative_cache_folder_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert native.cache_folder() == Path.home() / ".cache" / "dsopt"


def test_the_block_counter_compiles(source: Path) -> None:
    built = block_counter_library()
    assert built is not None
    assert built.name.startswith("block-counter-")
