"""Nested inputs and outputs as a JSON tree whose leaves are flat names.

    {"dict": [["out", "out"], ["aux", {"tuple": ["aux.0", "aux.1"]}]]}

A leaf is a string: the flat name of one tensor. A node is {"tuple": [...]}, {"list": [...]} or {"dict": [[key, tree], ...]};
{"const": value} stands for a plain value (int, float, bool, str or null) that was fixed when the model was captured.
Imports nothing, because the compiler and the runtime both use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

Tree = Any
"""str | {"tuple": [Tree]} | {"list": [Tree]} | {"dict": [[str, Tree]]} | {"const": value}"""


def leaves(tree: Tree) -> Iterator[str]:
    """Yield the flat names of a tree, in order."""
    if isinstance(tree, str):
        yield tree
        return
    kind, children = _node(tree)
    if kind == "const":
        return
    for child in children if kind != "dict" else [value for _, value in children]:
        yield from leaves(child)


def unflatten(tree: Tree, values: Mapping[str, Any]) -> Any:
    """Build the nested value whose leaves are `values[name]`. Raises KeyError for a missing leaf."""
    if isinstance(tree, str):
        return values[tree]
    kind, children = _node(tree)
    if kind == "const":
        return children
    if kind == "dict":
        return {key: unflatten(child, values) for key, child in children}
    items = [unflatten(child, values) for child in children]
    return tuple(items) if kind == "tuple" else items


def flatten(tree: Tree, value: Any, mismatch: Callable[[str, Tree, Any], None], path: str = "") -> dict[str, Any]:
    """Return {flat name: leaf} of a nested `value`; `mismatch(path, tree, value)` is told of every place that does not fit."""
    if isinstance(tree, str):
        return {tree: value}
    kind, children = _node(tree)
    if kind == "const":
        # Arrays compare element by element, so that only plain values are compared.
        if not (value is None or isinstance(value, (bool, int, float, str))) or value != children:
            mismatch(path, tree, value)
        return {}
    found: dict[str, Any] = {}
    if kind == "dict":
        if not isinstance(value, Mapping) or set(value) != {key for key, _ in children}:
            mismatch(path, tree, value)
            return found
        pairs = [(key, child, value[key]) for key, child in children]
    else:
        if not isinstance(value, (tuple, list)) or len(value) != len(children):
            mismatch(path, tree, value)
            return found
        pairs = [(str(i), child, item) for i, (child, item) in enumerate(zip(children, value, strict=True))]
    for key, child, item in pairs:
        found |= flatten(child, item, mismatch, f"{path}.{key}" if path else key)
    return found


def _node(tree: Tree) -> tuple[str, Any]:
    if not isinstance(tree, dict) or len(tree) != 1:
        raise ValueError(f"not a tree of names: {tree!r}")
    kind, children = next(iter(tree.items()))
    if kind not in ("tuple", "list", "dict", "const"):
        raise ValueError(f"unknown kind of tree node {kind!r}")
    return kind, children
