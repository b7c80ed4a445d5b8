"""The errors a user of dsopt can meet, each with a code that `dsopt explain CODE` explains.

    DsoptError
    ├── UsageError            exit 2   an unknown name, a wrong option, input or configuration
    │   └── InputError                 a value given to a session differs from the manifest
    ├── ReadError             exit 2   a file is missing, truncated, altered, too new or not what it claims to be
    │   └── ArtifactError              the same, of an artifact
    ├── WriteError            exit 2   the output cannot be written; nothing was left behind
    ├── CaptureError          exit 3   the model cannot be exported; names the line of the user's module
    ├── UnsupportedOpError    exit 3   a target cannot run some nodes; names all of them
    ├── CheckError            exit 1   a measured result differs from what it must be
    ├── BudgetError           exit 1   the program does not fit; names the bytes needed and given
    ├── ToolchainError        exit 4   a compiler, emulator, driver or package is missing; says how to get it
    ├── VerifyError           exit 2   a program contradicts itself: our bug, or a graph edited by hand
    └── PassError             exit 2   a pass failed; names the pass, its options and the passes before it

Every code has a page in `dsopt/explanations/`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar


class DsoptError(Exception):
    """Say what was wrong, where, why and what to do.

    code: "DS0123", a page of `dsopt/explanations/`.  what: one sentence with the value seen.  where: node, layer and source
    line, or file.  why: the reason, if it is not plain.  fix: what the user can do.
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, code: str, what: str, *, where: str = "", why: str = "", fix: str = "") -> None:
        super().__init__(code, what, where, why, fix)
        self.code, self.what, self.where, self.why, self.fix = code, what, where, why, fix

    def __str__(self) -> str:
        lines = [f"{self.code}: {self.what}"]
        for label, text in (("where", self.where), ("why", self.why), ("do", self.fix)):
            if text:
                lines.append(f"  {label}: " + text.replace("\n", "\n    "))
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.code, self.what, self.where, self.why, self.fix)

    def as_dict(self) -> dict[str, str]:
        """Return the parts as strings, for `--json`."""
        return {"code": self.code, "what": self.what, "where": self.where, "why": self.why, "fix": self.fix}


def _rebuild(kind: type[DsoptError], code: str, what: str, where: str, why: str, fix: str) -> DsoptError:
    return kind(code, what, where=where, why=why, fix=fix)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "did you mean relu or relu6? " for "reluu"; "" where nothing known is near."""
    from difflib import get_close_matches

    near = get_close_matches(name[:100], list(known), n=2)
    return f"did you mean {' or '.join(near)}? " if near else ""


class UsageError(DsoptError):
    """An unknown name, a wrong option or a wrong configuration."""


class InputError(UsageError):
    """A value given to a session differs from what the manifest says."""


class ReadError(DsoptError):
    """A file is missing, truncated, altered, too new or not what it claims to be."""


class ArtifactError(ReadError):
    """An artifact is missing, truncated, altered or too new."""


class WriteError(DsoptError):
    """The output cannot be written; nothing was left behind."""


class CaptureError(DsoptError):
    """The model cannot be exported."""

    exit_code = 3


class UnsupportedOpError(DsoptError):
    """A target cannot run some nodes of the program."""

    exit_code = 3


class CheckError(DsoptError):
    """A measured result differs from what it must be."""

    exit_code = 1


class BudgetError(DsoptError):
    """The program does not fit the memory of its target."""

    exit_code = 1


class ToolchainError(DsoptError):
    """A compiler, emulator, driver or package is missing."""

    exit_code = 4


class VerifyError(DsoptError):
    """A program contradicts itself."""


class PassError(DsoptError):
    """A pass failed."""
