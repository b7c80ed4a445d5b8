"""Projects hold the artifact's sources unchanged, build and run on a desk, and are written whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from dsopt.artifact import Artifact, writing
from dsopt.errors import ArtifactError, UsageError, WriteError
from dsopt.projects import PROJECTS, export_project, project_files
from tests.projects.conftest import run
from tests.simulate.images import needs_gcc

pytestmark = pytest.mark.mcu

SAYS = "keyword: 0 of 1 outputs differ from the trained model\nthe first value of output 0 is "


@pytest.mark.parametrize("kind", PROJECTS)
def test_the_sources_are_those_of_the_artifact_under_the_models_name(kind: str, chip: Artifact) -> None:
    files = project_files(chip, kind)
    assert project_files(chip, kind) == files
    for name in ("model.c", "model.h", "weights.c", "kernels.h"):
        found = [content for path, content in files.items() if path.endswith(f"/keyword/{name}")]
        assert found == [chip.files[name]]
    assert not {path for path in files if path.startswith(("/", "..")) or "//" in path}


@pytest.mark.parametrize("kind", PROJECTS)
def test_a_readme_says_what_the_model_takes_and_what_was_checked(kind: str, chip: Artifact) -> None:
    text = project_files(chip, kind)["README.md"].decode()
    assert "| input 0 | `x` | float32 | [1, 3, 16, 16] | `keyword_input(0)` |" in text
    assert "built for cortex-m0plus, run in an emulator and compared with the trained model" in text
    assert "NAME" not in text.replace("NAME.h", "")
    checked = text.partition(f"- This {kind} project: ")[2]
    assert (
        "structure only" in checked
        if kind not in ("cmake", "make")
        else "configure, build and run" in checked or "build and run" in checked
    )


def test_make_builds_and_runs(chip: Artifact, tmp_path: Path) -> None:
    export_project(chip, "make", tmp_path / "project")
    text = run(tmp_path / "project", "make", "test", "CFLAGS=-O1 -Wall -Wextra -Werror")
    assert SAYS in text
    assert (
        run(tmp_path / "project", "make", "all", "CFLAGS=-O1 -Wall -Wextra -Werror").strip()
        == "make: Nothing to be done for 'all'."
    )
    run(tmp_path / "project", "make", "clean")
    assert not (tmp_path / "project/build").exists()


@needs_gcc
@pytest.mark.parametrize("kind", ["make", "cmake"])
def test_a_cross_compiler_builds_the_library(kind: str, chip: Artifact, tmp_path: Path) -> None:
    export_project(chip, kind, tmp_path / "project")
    core = "-mcpu=cortex-m0plus -mthumb"
    if kind == "make":
        run(tmp_path / "project", "make", "library", "CC=arm-none-eabi-gcc", "AR=arm-none-eabi-ar", f"TARGET={core}")
    elif shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    else:
        tools = ("-DCMAKE_SYSTEM_NAME=Generic", "-DCMAKE_C_COMPILER=arm-none-eabi-gcc", f"-DCMAKE_C_FLAGS={core}")
        run(tmp_path / "project", "cmake", "-B", "build", *tools, "-DCMAKE_TRY_COMPILE_TARGET_TYPE=STATIC_LIBRARY")
        run(tmp_path / "project", "cmake", "--build", "build", "--target", "keyword")
    text = run(tmp_path / "project", "arm-none-eabi-nm", "--undefined-only", "build/libkeyword.a")
    called = set(re.findall(r"^ +U (\w+)$", text, re.MULTILINE))
    assert not {name for name in called if not name.startswith(("keyword_", "__aeabi_"))} - {"memcpy", "memset"}


@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
def test_cmake_configures_builds_and_tests_alone_and_as_a_part(
    chip: Artifact, stateful: Artifact, tmp_path: Path
) -> None:
    export_project(chip, "cmake", tmp_path / "whole/keyword")
    export_project(stateful, "cmake", tmp_path / "whole/second")
    alone = tmp_path / "whole/keyword"
    run(alone, "cmake", "-B", "build", "-Wdev", "-Werror=dev")
    run(alone, "cmake", "--build", "build")
    assert SAYS in run(alone, "ctest", "--test-dir", "build", "--verbose").replace("1: ", "")
    (tmp_path / "whole/CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.13)\nproject(whole C)\nadd_subdirectory(keyword)\nadd_subdirectory(second)\n"
        "add_executable(both main.c)\ntarget_link_libraries(both PRIVATE keyword second)\n"
    )
    (tmp_path / "whole/main.c").write_text(
        '#include "keyword.h"\n#include "second.h"\n'
        "int main(void) { keyword_init(); second_init(); keyword_run(); second_run(); return keyword_output(0) == second_output(0); }\n"
    )
    run(tmp_path / "whole", "cmake", "-B", "build")
    run(tmp_path / "whole", "cmake", "--build", "build")
    run(tmp_path / "whole", "build/both")
    assert not list((tmp_path / "whole/build").rglob("keyword_example"))


def test_a_project_of_a_model_with_states_runs(stateful: Artifact, tmp_path: Path) -> None:
    export_project(stateful, "make", tmp_path / "project")
    assert "second: 0 of 1 outputs differ" in run(tmp_path / "project", "make", "test")
    text = (tmp_path / "project/README.md").read_text()
    assert "`second_state(0)`" in text
    assert "`second_reset()` puts them back" in text


@pytest.mark.parametrize("kind", PROJECTS)
def test_what_is_there_is_left_alone(kind: str, chip: Artifact, tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    export_project(chip, kind, tmp_path / "project")  # an empty folder may be filled
    before = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(WriteError, match=r"DS0808: .*project exists already, and was left alone"):
        export_project(chip, kind, tmp_path / "project")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(WriteError, match="DS0808"):
        export_project(chip, kind, tmp_path / "file")
    assert sorted(path for path in tmp_path.rglob("*")) == sorted([*before, tmp_path / "file"])


def test_a_project_that_cannot_be_written_leaves_nothing(
    chip: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = writing._write_file

    def full(place: Path, content: bytes) -> None:
        if place.name == "weights.c":
            raise OSError(28, "No space left on device")
        written(place, content)

    monkeypatch.setattr(writing, "_write_file", full)
    with pytest.raises(WriteError, match=r"DS0807: .*\n  why: No space left"):
        export_project(chip, "cmake", tmp_path / "deep/project")
    assert os.listdir(tmp_path) == []


def test_what_is_no_artifact_for_a_microcontroller_is_refused(chip: Artifact) -> None:
    other = Artifact({**chip.manifest, "target": "cpu"}, chip.files)
    with pytest.raises(
        UsageError, match="DS0925: projects are made of artifacts for microcontrollers, and this one is for cpu"
    ):
        project_files(other, "make")
    with pytest.raises(UsageError, match="DS0924: there is no project of the kind 'bazel'\n  do: known: cmake, make"):
        project_files(chip, "bazel")


@pytest.mark.parametrize(
    ("manifest", "without", "message"),
    [
        ({"c_prefix": '"; rm -rf /'}, "", "its prefix"),
        ({"c_prefix": None}, "", "its prefix"),
        ({"target": "mcu:z80"}, "", "its core is 'z80'"),
        ({}, "weights.c", "it has no weights.c"),
    ],
)
def test_a_damaged_artifact_is_refused(chip: Artifact, manifest: dict[str, object], without: str, message: str) -> None:
    files = {name: chip.files[name] for name in chip.files if name != without}
    with pytest.raises(ArtifactError, match="DS0864") as caught:
        project_files(Artifact({**chip.manifest, **manifest}, files), "make")
    assert message in caught.value.what


def test_names_of_a_strangers_model_stay_inside_of_the_readme(chip: Artifact) -> None:
    inputs = [{**chip.manifest["inputs"][0], "name": "a`|<script>\n# b"}]
    text = project_files(Artifact({**chip.manifest, "inputs": inputs}, chip.files), "make")["README.md"].decode()
    assert "| `a???script??# b` |" in text
