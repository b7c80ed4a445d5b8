"""An artifact: what a build gives. A manifest and files, as a folder or as one `.dsopt` file, the same bytes for the same build.

    manifest.json    schema, target, inputs, outputs, states, passes, layers, memory, and the hash of every other file
    lock.json        versions, seed and hashes of what it was built from
    ...              the code and weights of its target

Needs the standard library only, and reads files from strangers: nothing is unpickled, names stay inside, sizes are bounded, and
every file is compared with its hash before it is given out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsopt.artifact.manifest import SUFFIX, check_manifest, describe_files, manifest_bytes
from dsopt.artifact.reading import LazyFiles, open_files
from dsopt.artifact.writing import write_archive, write_folder

__all__ = ["SUFFIX", "Artifact", "load_artifact"]


@dataclass(frozen=True)
class Artifact:
    """A build: its manifest (target, inputs, outputs, memory plan, pass records) and its other files by their names."""

    manifest: Mapping[str, Any]
    files: Mapping[str, bytes]

    def __repr__(self) -> str:
        return f"Artifact(target={self.manifest.get('target')!r}, files={sorted(self.files)})"

    @property
    def target(self) -> str:
        """Return the text form of the target, such as "mcu:cortex-m4"."""
        return str(self.manifest["target"])

    def check(self) -> None:
        """Raise ArtifactError if the manifest contradicts itself or names files that are not there."""
        check_manifest(self.manifest, self.files)

    def save(self, path: str | Path) -> None:
        """Write a folder, or one file if `path` ends in ".dsopt". What was there is replaced at the end, or not at all.

        Raises WriteError if the output cannot be written or would replace what is no artifact; nothing is then left behind.
        """
        manifest = describe_files(self.manifest, self.files)
        check_manifest(manifest, self.files)
        path = Path(path)
        write = write_archive if path.suffix == SUFFIX else write_folder
        write(path, manifest_bytes(manifest), self.files)

    def view(self, name: str) -> memoryview:
        """Return a file's bytes without copying them: mapped where the artifact is on disk. Raises ArtifactError."""
        return self.files.view(name) if isinstance(self.files, LazyFiles) else memoryview(self.files[name])

    def path_of(self, name: str) -> Path | None:
        """Return where a file lies on disk, after comparing its hash; None if it is in memory or inside a .dsopt file."""
        return self.files.path_of(name) if isinstance(self.files, LazyFiles) else None


def load_artifact(path: str | Path) -> Artifact:
    """Open a folder or a .dsopt file; only the manifest is read, other files when they are asked for.

    Raises ArtifactError if it is missing, truncated, altered, written by a newer dsopt, or asks for more than it may.
    """
    manifest, files = open_files(Path(path))
    return Artifact(manifest, files)
