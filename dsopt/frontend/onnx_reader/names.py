"""Turn names of an ONNX file into Python identifiers, parameter names and module paths."""

from __future__ import annotations

import ast
import keyword
import re
from collections.abc import Collection, Mapping

from torch import nn

_GENERATED = re.compile(
    r"onnx::\w+|val_\d+|\d+|.*[Cc]onstant(_\d+)?(_output_\d+)?|.*_(cast|folded|transposed)(_\d+)?|_\w*\d+"
)
_MODULE_ATTRIBUTES = frozenset(dir(nn.Module()))


def identifier(name: str, taken: Collection[str] = ()) -> str:
    """Return a Python identifier close to `name` ("input.1" becomes "input_1") that is not among `taken`."""
    text = re.sub(r"\W", "_", name, flags=re.ASCII)[:100] or "value"
    if text[0].isdigit():
        text = f"_{text}" if taken or name else text
    if keyword.iskeyword(text) or text in ("self", "args", "kwargs"):
        text += "_"
    return _fresh(text, taken)


def qualified(name: str, taken: Collection[str] = ()) -> str:
    """Return a dotted name that torch takes for a parameter or a module: "a/b:0" becomes "a.b_0", "forward" "forward_"."""
    parts = [re.sub(r"\W", "_", part, flags=re.ASCII) for part in re.split(r"[./]|::", name[:400])]
    parts = [f"{part}_" if part in _MODULE_ATTRIBUTES else part for part in parts if part]
    return _fresh(".".join(parts) or "value", taken)


def is_generated(name: str) -> bool:
    """Tell whether an exporter made the name up, so that a better one may replace it: "onnx::Conv_278", "val_16"."""
    return _GENERATED.fullmatch(name) is not None


def layer_path(node_name: str, metadata: Mapping[str, str]) -> str:
    """Return the dotted path of the user's module that a node comes from.

    torch's newer exporter records it; its older one writes "/layer1/layer1.0/conv1/Conv", where an item of a Sequential
    repeats the name of what holds it. Of other names, the last component is the operator.
    """
    scopes = metadata.get("pkg.torch.onnx.name_scopes", "")
    if scopes:
        return _recorded(scopes)
    *parts, _ = node_name.strip("/").split("/")
    path: list[str] = []
    for part in parts:
        if path and part.startswith(f"{path[-1]}."):
            path[-1] = part
        else:
            path.append(part)
    return qualified(".".join(path)) if path else ""


def _recorded(scopes: str) -> str:
    if len(scopes) > 4000:
        return ""
    try:
        names = ast.literal_eval(scopes)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ""
    if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str) for name in names):
        return ""
    owner: str = names[-2]
    return "" if not owner or owner.startswith("_empty_nn_module_stack") else qualified(owner)


def _fresh(name: str, taken: Collection[str]) -> str:
    if name not in taken:
        return name
    number = 2
    while f"{name}_{number}" in taken:
        # A file of nothing but equal names must not be searched through for each of them.
        number = number + 1 if number < 20 else number + len(taken)
    return f"{name}_{number}"
