"""What each build system asks for, as far as it is documented; and each kind's example, built as that system would, on a desk."""

from __future__ import annotations

import io
import json
import re
import shutil
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path

import pytest

from dsopt.artifact import Artifact
from dsopt.projects import export_project
from dsopt.projects.cmsis_pack import pack
from dsopt.projects.model import Model
from tests.projects.conftest import Build, run

pytestmark = pytest.mark.mcu
needs_cmake = pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")

SAYS = "keyword: 0 of 1 outputs differ from the trained model\nthe first value of output 0 is "


def exported(chip: Artifact, kind: str, tmp_path: Path) -> Path:
    export_project(chip, kind, tmp_path / "keyword")
    return tmp_path / "keyword"


def below(folder: Path, *patterns: str) -> list[str]:
    """Return the files below a folder, relative to the project, as a build system finds them."""
    return sorted(str(path) for pattern in patterns for path in folder.rglob(pattern))


# ---- Arduino ----

ARDUINO_H = """
#include <cstdio>
static unsigned long now;
static inline unsigned long millis() { return now += 10; }
static inline unsigned long micros() { return now += 10; }
struct Console {
  void begin(long) {}
  explicit operator bool() const { return true; }
  void print(const char *text) { std::printf("%s", text); }
  void print(int value) { std::printf("%d", value); }
  void println(const char *text) { std::printf("%s\\n", text); }
  void println(unsigned long value) { std::printf("%lu\\n", value); }
};
static Console Serial;
"""


def test_an_arduino_library_follows_the_specification(chip: Artifact, tmp_path: Path) -> None:
    """Arduino library specification, "Library metadata" and "Library root folder"."""
    folder = exported(chip, "arduino", tmp_path)
    lines = (folder / "library.properties").read_text().splitlines()
    values = dict(line.split("=", 1) for line in lines)
    needed = {"name", "version", "author", "maintainer", "sentence", "paragraph", "category", "url", "architectures"}
    assert needed <= set(values)
    assert len(values) == len(lines)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 _.-]{0,62}", values["name"])
    assert not values["name"].lower().startswith("arduino")
    assert re.fullmatch(r"\d+\.\d+\.\d+", values["version"])
    assert values["category"] in {
        "Display", "Communication", "Signal Input/Output", "Sensors", "Device Control", "Timing", "Data Storage",
        "Data Processing", "Other",
    }  # fmt: skip
    assert (folder / "src" / values["includes"]).exists()
    assert not {path.name for path in folder.iterdir()} - {
        "src", "examples", "library.properties", "keywords.txt", "README.md",
    }  # fmt: skip
    for line in (folder / "keywords.txt").read_text().splitlines():
        assert re.fullmatch(r"\w+\t(KEYWORD1|KEYWORD2|LITERAL1)", line)
    for example in (folder / "examples").iterdir():
        assert (example / f"{example.name}.ino").exists()
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}", example.name)


def test_a_sketch_runs_with_a_stand_in_for_arduino(chip: Artifact, tmp_path: Path, build: Build) -> None:
    folder = exported(chip, "arduino", tmp_path)
    (tmp_path / "Arduino.h").write_text(ARDUINO_H)
    sketch = (folder / "examples/RunTests/RunTests.ino").read_text()
    (tmp_path / "sketch.cpp").write_text(
        f'#include "Arduino.h"\nvoid setup();\nvoid loop();\n{sketch}\nint main() {{ setup(); loop(); }}\n'
    )
    sources = [str(tmp_path / "sketch.cpp"), *below(folder / "src", "*.c"), *below(folder / "examples", "*.c")]
    text = build(folder, sources, [str(folder / "src")])
    assert text.startswith("keyword: 0 outputs differ from the trained model\nmicroseconds with the comparison: ")


# ---- PlatformIO ----


def test_a_platformio_library_has_the_documented_keys(chip: Artifact, tmp_path: Path) -> None:
    """PlatformIO documentation, "library.json"; platformio.ini."""
    import configparser

    folder = exported(chip, "platformio", tmp_path)
    library = json.loads((folder / "lib/keyword/library.json").read_text())
    assert re.fullmatch(r"[a-z0-9_-]{1,50}", library["name"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", library["version"])
    assert set(library) <= {
        "name", "version", "description", "keywords", "headers", "frameworks", "platforms", "build",
    }  # fmt: skip
    for key in ("srcDir", "includeDir"):
        assert (folder / "lib/keyword" / library["build"][key]).is_dir()
    assert (folder / "lib/keyword/src" / library["headers"]).exists()
    ini = configparser.ConfigParser()
    ini.read(folder / "platformio.ini")
    assert dict(ini["env:native"]) == {"platform": "native"}
    assert ini["env:board"]["board"] == "pico"


def test_the_native_environment_of_platformio_runs(chip: Artifact, tmp_path: Path, build: Build) -> None:
    folder = exported(chip, "platformio", tmp_path)
    sources = [*below(folder / "src", "*.c", "*.cpp"), *below(folder / "lib", "*.c")]
    assert SAYS in build(folder, sources, ["lib/keyword/src"], "-Wno-pedantic")


def test_the_arduino_environment_of_platformio_runs(chip: Artifact, tmp_path: Path, build: Build) -> None:
    folder = exported(chip, "platformio", tmp_path)
    (tmp_path / "arduino").mkdir()
    (tmp_path / "arduino/Arduino.h").write_text(ARDUINO_H)
    (tmp_path / "main.cpp").write_text("void setup();\nvoid loop();\nint main() { setup(); loop(); }\n")
    sources = [str(tmp_path / "main.cpp"), *below(folder / "src", "*.c", "*.cpp"), *below(folder / "lib", "*.c")]
    text = build(folder, sources, ["lib/keyword/src", str(tmp_path / "arduino")], "-DARDUINO=1", "-Wno-pedantic")
    assert "keyword: 0 outputs differ" in text


# ---- Zephyr and ESP-IDF: their CMake files run with stand-ins that record what they are called with ----

RECORD = """
function(record)
  file(APPEND ${RECORDS} "${ARGN}\\n")
endfunction()
"""


def recorded(folder: Path, script: str) -> dict[str, list[str]]:
    """Run a script of CMake and return {function: its arguments} of what it recorded."""
    (folder / "records.cmake").write_text(RECORD + script)
    run(folder, "cmake", f"-DRECORDS={folder / 'records.txt'}", "-P", "records.cmake")
    lines = (folder / "records.txt").read_text().splitlines()
    return {line.split(";")[0]: line.split(";")[1:] for line in lines}


@needs_cmake
def test_a_zephyr_module_registers_its_sources(chip: Artifact, tmp_path: Path, build: Build) -> None:
    """Zephyr documentation, "Modules (External projects)"."""
    folder = exported(chip, "zephyr", tmp_path)
    lines = [line.strip() for line in (folder / "zephyr/module.yml").read_text().splitlines()]
    assert lines == ["name: keyword", "build:", "cmake: .", "kconfig: Kconfig"]
    symbol = re.match(r"config (\w+)\n\tbool \".*\"\n\thelp\n", (folder / "Kconfig").read_text())
    assert symbol is not None
    config = (folder / "samples/run_tests/prj.conf").read_text().splitlines()
    assert f"CONFIG_{symbol[1]}=y" in config
    assert all(re.fullmatch(r"CONFIG_\w+=(y|\d+)", line) for line in config)
    names = ("zephyr_include_directories", "zephyr_library_named", "zephyr_library_sources")
    stubs = "".join(f"function({name})\n  record({name} ${{ARGN}})\nendfunction()\n" for name in names)
    module = recorded(folder, f"{stubs}set(CONFIG_{symbol[1]} y)\ninclude(CMakeLists.txt)\n")
    assert module["zephyr_library_named"] == ["keyword"]
    sample = folder / "samples/run_tests"
    application = recorded(
        sample,
        "macro(find_package)\n  record(modules ${EXTRA_ZEPHYR_MODULES})\nendmacro()\nmacro(project)\nendmacro()\n"
        "function(target_sources)\n  record(target_sources ${ARGN})\nendfunction()\n"
        "set(CMAKE_CURRENT_SOURCE_DIR .)\ninclude(CMakeLists.txt)\n",
    )
    assert (sample / application["modules"][0]).resolve() == folder
    assert application["target_sources"][:2] == ["app", "PRIVATE"]
    sources = [
        *module["zephyr_library_sources"],
        *(f"samples/run_tests/{name}" for name in application["target_sources"][2:]),
    ]
    assert SAYS in build(folder, sources, module["zephyr_include_directories"])


@needs_cmake
def test_an_esp_idf_component_registers_its_sources(chip: Artifact, tmp_path: Path, build: Build) -> None:
    """ESP-IDF programming guide, "Build system", and the manifest of the component manager."""
    folder = exported(chip, "espidf", tmp_path)
    stubs = (
        'function(idf_component_register)\n  cmake_parse_arguments(ARG "" "" "SRCS;INCLUDE_DIRS;REQUIRES" ${ARGN})\n'
        "  if(ARG_UNPARSED_ARGUMENTS)\n    message(FATAL_ERROR ${ARG_UNPARSED_ARGUMENTS})\n  endif()\n"
        "  record(SRCS ${ARG_SRCS})\n  record(INCLUDE_DIRS ${ARG_INCLUDE_DIRS})\nendfunction()\n"
        "function(target_compile_options)\nendfunction()\ninclude(CMakeLists.txt)\n"
    )
    component = recorded(folder, stubs)
    main = folder / "examples/run_tests/main"
    example = recorded(main, stubs)
    manifest = (folder / "idf_component.yml").read_text()
    assert re.search(r'^version: "\d+\.\d+\.\d+"$', manifest, re.MULTILINE)
    assert re.search(r'^dependencies:\n  idf: ">=5.0"$', manifest, re.MULTILINE)
    dependency = re.search(r'override_path: "(.*)"', (main / "idf_component.yml").read_text())
    assert dependency is not None
    assert (main / dependency[1]).resolve() == folder
    assert "project(keyword_run_tests)" in (main.parent / "CMakeLists.txt").read_text()
    (tmp_path / "start.c").write_text("void app_main(void);\nint main(void) { app_main(); return 0; }\n")
    sources = [*component["SRCS"], *(str(main / name) for name in example["SRCS"]), str(tmp_path / "start.c")]
    assert SAYS in build(folder, sources, component["INCLUDE_DIRS"])


# ---- CMSIS ----


def test_a_cmsis_pack_has_what_the_specification_asks_for(chip: Artifact, tmp_path: Path, build: Build) -> None:
    """Open-CMSIS-Pack specification, "Pack description (*.PDSC) format"."""
    folder = exported(chip, "cmsis-pack", tmp_path)
    root = ET.parse(folder / "dsopt.keyword.pdsc").getroot()
    assert root.tag == "package"
    assert root.attrib["schemaVersion"].startswith("1.7.")
    texts = {child.tag: (child.text or "").strip() for child in root}
    assert {"vendor", "name", "description", "url", "license", "releases", "keywords", "components"} == set(texts)
    assert f"{texts['vendor']}.{texts['name']}.pdsc" == "dsopt.keyword.pdsc"
    assert re.fullmatch(r"[\-_A-Za-z0-9]+", texts["vendor"])
    assert (folder / texts["license"]).exists()
    (release,) = root.iter("release")
    assert re.fullmatch(r"\d+\.\d+\.\d+", release.attrib["version"])
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", release.attrib["date"])
    (component,) = root.iter("component")
    assert {"Cclass", "Cgroup", "Cversion"} <= set(component.attrib)
    files = [file.attrib for file in component.iter("file")]
    assert {file["category"] for file in files} <= {"include", "header", "source"}
    assert all((folder / file["name"]).exists() for file in files)
    assert all("select" in file for file in files if file.get("attr") == "template")
    sources = [file["name"] for file in files if file["category"] == "source"]
    includes = [file["name"] for file in files if file["category"] == "include"]
    assert SAYS in build(folder, sources, includes)


def test_a_pack_is_the_folder_and_the_same_bytes_each_time(chip: Artifact, tmp_path: Path) -> None:
    folder = exported(chip, "cmsis-pack", tmp_path)
    content = (folder / "dsopt.keyword.1.0.0.pack").read_bytes()
    others = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".pack"
    }
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == others
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert list(pack(Model.of(chip), others).values()) == [content]
