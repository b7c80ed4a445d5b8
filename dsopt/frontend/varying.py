"""Explain why a size that was to vary cannot: which line fixes it, to what, and how to write it instead."""

from __future__ import annotations

import re

from torch import nn

from dsopt.errors import CaptureError
from dsopt.frontend.traces import Line, chain_of, code_at, frames_of, is_model_file, where_text
from dsopt.ir.torch_private import guard_locations

_FIXED = re.compile(r"You marked (\S+) as dynamic but your code specialized it to be a constant \((\d+)\)")
_FIXED_HINT = re.compile(r"specialized due to hint of (\d+) for dimension inputs\['([^']+)'\]\.shape\[(\d+)\]")
_RANGE = re.compile(r"Not all values of (\S+) = .*? in the specified range (.*?) satisf\w+ the generated guard (.*)")
_EQUAL = re.compile(r"The values of (\S+) = .*? and (\S+) = .*? must always be equal")
_SIZE = re.compile(r"L\['([^']+)'\]\.size\(\)\[(\d+)\]")


def explain_sizes(error: BaseException, model: nn.Module | None) -> CaptureError | None:
    """Return a CaptureError DS0171 if torch found that a varying size cannot vary, else None."""
    text = next((str(item) for item in chain_of(error) if _is_about_sizes(str(item))), None)
    if text is None:
        return None
    lines = _lines(error)
    if found := _FIXED.search(text):
        return _fixed(found[1], int(found[2]), lines, model)
    if found := _FIXED_HINT.search(text):
        return _fixed(f"axis {found[3]} of {found[2]}", int(found[1]), lines, model)
    if found := _EQUAL.search(text):
        return CaptureError(
            "DS0171",
            f"the sizes {found[1]!r} and {found[2]!r} must be equal, and were given different names",
            where=where_text(lines[:1]),
            fix=f"Give both axes one name: write {found[2]!r} for {found[1]!r}.",
        )
    guards = _RANGE.findall(text)
    if guards:
        name, bounds, _ = guards[0]
        # A guard that is an equation or an order says more than those about strides, which only follow from it.
        guard = next((item for _, _, item in guards if "!=" not in item), guards[0][2])
        return CaptureError(
            "DS0171",
            f"the model does not work for all sizes that {name!r} was said to have: it needs {_readable(guard, name)}",
            where=where_text(lines[:1]),
            why=f"{name!r} was to be any size with {bounds.strip()}." if bounds.strip() else "",
            fix="\n".join(filter(None, [_suggestion(text, name), "Or change the line to work for every size."])),
        )
    return CaptureError("DS0171", f"a size that was to vary cannot: {_summary(text)}", where=where_text(lines[:1]))


def _is_about_sizes(text: str) -> bool:
    return "Constraints violated" in text or "conflicts between user-specified ranges" in text


def _fixed(name: str, value: int, lines: list[Line], model: nn.Module | None) -> CaptureError:
    layers = (
        [child for child, module in model.named_modules() if isinstance(module, nn.RNNBase)]
        if model is not None
        else []
    )
    why, fix = (
        "",
        (
            f"Take the size from the input there: x.view(x.shape[0], -1) rather than x.view({value}, ...).\n"
            f"Or let it be fixed: leave it out of the varying sizes."
        ),
    )
    if value == 1:
        why = "torch takes an example size of 1 for a fixed size."
        fix = "Give an example in which this axis has size 2 or more."
    elif lines and any(f"{child.rpartition('.')[2]}(" in lines[0].code for child in layers):
        why = f"torch.export unrolls LSTM and GRU layers ({', '.join(layers[:3])}) over the time of the example."
        fix = "Let the time be fixed, and vary the batch; or run the layer one step at a time, with its state as input and output."
    return CaptureError(
        "DS0171",
        f"the model fixes the size {name!r} to {value}, and it was to vary",
        where=where_text(lines[:1]),
        why=why,
        fix=fix,
    )


def _lines(error: BaseException) -> list[Line]:
    """Return the lines of the model that made assumptions about sizes, in the order in which torch met them."""
    for item in chain_of(error):
        for frame, _ in frames_of(item):
            found = [
                Line(file, number, code_at(file, number))
                for file, number in guard_locations(frame.f_locals)
                if is_model_file(file)
            ]
            if found:
                return found
    return []


def _readable(guard: str, name: str) -> str:
    """Return a guard with the user's name for the size and without doubled parentheses."""
    sizes = set(_SIZE.findall(guard))
    text = (
        _SIZE.sub(name, guard) if len(sizes) == 1 else _SIZE.sub(lambda found: f"{found[1]}.shape[{found[2]}]", guard)
    )
    return text.strip().rstrip(".")


def _suggestion(text: str, name: str) -> str:
    """Return torch's suggested fix in dsopt's words, "" if there is none."""
    _, _, rest = text.partition("Suggested fixes:")
    for line in rest.splitlines():
        if found := re.match(rf"\s+{re.escape(name)} = Dim\((.*)\)", line):
            ends = dict(re.findall(r"(min|max)=(\d+)", found[1]))
            words = [f"{word} {ends[end]}" for end, word in (("min", "at least"), ("max", "at most")) if end in ends]
            return f"Narrow its range to {' and '.join(words)}." if words else ""
        if found := re.match(rf"\s+{re.escape(name)} = (\d+)\*\w+", line):
            return f"It may only be a multiple of {found[1]}, which a varying size cannot say: let it be fixed."
        if found := re.match(rf"\s+{re.escape(name)} = (\d+)$", line):
            return f"Let it be fixed to {found[1]}."
    return ""


def _summary(text: str) -> str:
    found = next((line.strip(" -") for line in text.splitlines() if line.lstrip().startswith("- ")), "")
    return found or text.splitlines()[0]
