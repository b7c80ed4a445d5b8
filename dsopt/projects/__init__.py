"""Projects: the C files of a microcontroller artifact with what a build system wants around them, as a folder to open.

    export_project(load_artifact("out/net-m4"), "cmake", Path("firmware"))

Nothing is compiled again: the sources are those of the artifact, byte for byte. To add a kind: a file here with `files(model)` and
`CHECKED`, and a line in `PROJECTS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from dsopt.artifact import Artifact
from dsopt.artifact.writing import create_folder
from dsopt.errors import UsageError
from dsopt.projects.model import Model
from dsopt.projects.readme import readme

PROJECTS: dict[str, str] = {
    "cmake": "A CMake library with an example and a test.",
    "make": "A Makefile for a static library, an example and a test.",
    "arduino": "An Arduino library with an example sketch.",
    "platformio": "A PlatformIO project: the model as a library, an example as its main.",
    "zephyr": "A Zephyr module with a sample application.",
    "espidf": "An ESP-IDF component with an example project.",
    "cmsis-pack": "A CMSIS pack, as a folder and as the .pack file.",
}
"""Kind -> what it is. `dsopt/projects/KIND.py` writes it, with an underscore for the dash."""


def export_project(artifact: Artifact, kind: str, path: Path) -> dict[str, int]:
    """Write the project as a new folder at `path` and return its files with their bytes.

    Raises UsageError for an unknown kind or an artifact of another target, ArtifactError for a damaged one, and WriteError where
    something is at `path` already or nothing can be written; nothing is then left behind.
    """
    files = project_files(artifact, kind)
    create_folder(path, files)
    return {name: len(content) for name, content in sorted(files.items())}


def project_files(artifact: Artifact, kind: str) -> Mapping[str, bytes]:
    """Return the files of a project by name, with "/" between folders. Deterministic. Raises as `export_project`."""
    if kind not in PROJECTS:
        raise UsageError("DS0924", f"there is no project of the kind {kind!r}", fix="known: " + ", ".join(PROJECTS))
    model = Model.of(artifact)
    module = import_module(f"dsopt.projects.{kind.replace('-', '_')}")
    texts: dict[str, str | bytes] = dict(module.files(model))
    texts["README.md"] = readme(model, kind, PROJECTS[kind], module.CHECKED, module.HOW)
    files = {name: content.encode() if isinstance(content, str) else content for name, content in texts.items()}
    pack = getattr(module, "pack", None)
    return {**files, **pack(model, files)} if pack else files
