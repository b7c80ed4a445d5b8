"""Find the user's own line, and the layer it belongs to, in the traceback of a failed export."""

from __future__ import annotations

import linecache
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import FrameType

import torch
from torch import nn

_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_STANDARD = os.path.dirname(os.path.abspath(os.__file__)) + os.sep
_MOST_CALLERS = 3


@dataclass(frozen=True)
class Line:
    """One line of source in a model: its file, number, text, and the qualified name and class of its module."""

    file: str
    number: int
    code: str
    layer: str = ""

    def __str__(self) -> str:
        return f"{shown_path(self.file)}:{self.number}: {self.code}"


def shown_path(path: str) -> str:
    """Return a path relative to the working folder if it is inside of it."""
    relative = os.path.relpath(path) if os.path.isabs(path) else path
    return path if relative.startswith("..") else relative


def is_model_file(path: str) -> bool:
    """Tell whether a file is neither of torch, dsopt nor Python itself; models of installed packages count."""
    is_library = path.startswith((_TORCH, _OURS)) or (path.startswith(_STANDARD) and "site-packages" not in path)
    is_typed = path == "<stdin>" or path.startswith("<ipython-input")
    return is_typed or not (path.startswith("<") or is_library or f"{os.sep}functorch{os.sep}" in path)


def code_at(file: str, number: int) -> str:
    """Return one line of source without its indentation; "" if the file is gone."""
    return linecache.getline(file, number).strip()


def frames_of(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    """Yield every frame of a traceback with its line number, outermost first."""
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame, trace.tb_lineno
        trace = trace.tb_next


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those it was raised from, outermost first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def model_lines(error: BaseException, model: nn.Module | None = None) -> list[Line]:
    """Return the lines of model code that an exception passed through, innermost first, each with its layer if known.

    Frames before the first one of torch belong to whoever asked for the export. The innermost line has the layer that it
    was about to run, which may be a layer of torch itself: `self.head(x)` fails inside of "head".
    """
    names = {module: name for name, module in model.named_modules()} if model is not None else {}
    lines: list[Line] = []
    layer, is_inside = "", False
    for frame, number in frames_of(error):
        file = frame.f_code.co_filename
        is_inside = is_inside or file.startswith(_TORCH)
        owner = frame.f_locals.get("self")
        if is_inside and isinstance(owner, nn.Module) and owner in names:
            layer = f"{names[owner] or 'the model'} ({type(owner).__name__})"
        if is_inside and is_model_file(file):
            lines.append(Line(file, number, code_at(file, number), layer))
    if lines:
        lines[-1] = replace(lines[-1], layer=layer)
    return lines[::-1]


def where_text(lines: list[Line]) -> str:
    """Return lines for the `where` of an error: the innermost one, its layer, and the calls that led to it."""
    if not lines:
        return ""
    first = lines[0]
    parts = [str(first) + (f"  [{first.layer}]" if first.layer else "")]
    callers: list[Line] = []
    for line in lines[1:]:
        if line not in callers and (line.file, line.number) != (first.file, first.number):
            callers.append(line)
    return "\n".join(parts + [f"called from {line}" for line in callers[:_MOST_CALLERS]])
