"""Programs that long runs have trained, kept in a folder, so that a stopped run goes on where it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dsopt import Program


def kept(folder: Path | None, stem: str, train: Callable[[Path | None], Program]) -> Program:
    """Read what an earlier run has left under a name, or train and leave it. train: is told where its checkpoint is to be."""
    if folder is None:
        return train(None)
    folder.mkdir(parents=True, exist_ok=True)
    done, checkpoint = folder / f"{stem}.dsoptp", folder / f"{stem}.ckpt"
    if done.exists():
        return Program.load(done)
    program = train(checkpoint)
    program.save(done)
    checkpoint.unlink(missing_ok=True)
    return program
