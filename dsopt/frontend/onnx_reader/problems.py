"""The sentences that the reader of ONNX files can end with."""

from __future__ import annotations

from collections.abc import Sequence

from dsopt.errors import ReadError, UnsupportedOpError

EXPORT_AGAIN = "Copy or download the file again, or export the model again."


def damaged(label: str, what: str, why: str = "") -> ReadError:
    """Return the error for a file that is no ONNX model, or no longer."""
    return ReadError("DS0191", f"{label} {what}", why=why, fix=EXPORT_AGAIN)


def too_large(what: str, why: str = "") -> ReadError:
    """Return the error for a file that asks for more than the reader gives."""
    return ReadError("DS0192", what, why=why)


def inconsistent(what: str, where: str = "", why: str = "") -> ReadError:
    """Return the error for a graph that contradicts itself."""
    return ReadError("DS0193", what, where=where, why=why, fix=EXPORT_AGAIN)


def bad_tensor(what: str, why: str = "", fix: str = EXPORT_AGAIN) -> ReadError:
    """Return the error for a stored tensor that cannot be read."""
    return ReadError("DS0195", what, why=why, fix=fix)


Refusal = tuple[str, str, str]
"""Where, what is not supported, nearest supported form or ""."""


def not_supported(found: Sequence[Refusal], label: str = "") -> UnsupportedOpError:
    """Return the error that names everything that is not supported."""
    lines = [f"{where}: {what}" + (f"; nearest supported form: {near}" if near else "") for where, what, near in found]
    count = f"{len(found)} nodes use" if len(found) > 1 else "1 node uses"
    fix = "Export with another opset, or rewrite these parts; `dsopt doctor --onnx` lists the supported operators."
    return UnsupportedOpError("DS0198", f"{count} what is not supported", where=label, why="\n".join(lines), fix=fix)


class MalformedError(Exception):
    """A node that says something impossible; the reader adds where."""


class UnsupportedFormError(Exception):
    """A supported operator used in a way that is not supported; the reader adds where. args: what, nearest supported form."""

    def __init__(self, what: str, nearest: str = "") -> None:
        super().__init__(what, nearest)
        self.what, self.nearest = what, nearest


class UndecidedError(Exception):
    """A trial without numbers has met a step that needs them."""
